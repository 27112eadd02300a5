-- The windows of the links: what was sent to a node and is not answered, whoever sent it.
--
-- A link has the fields `window`, `count` and `bytes`. A held message takes part with these:
--   bytes                 what it counts for
--   outstanding           the link in whose window it is
--   gen, sent_at          the link that it was sent on last (its gen), and when; gen is nil if it is to be sent
--   again, ever_sent      it may have been sent before; it was
--   gone                  nobody waits for its answer any more

local time_now = require "util.time".now;

return function (ctx)
	local links, options = ctx.links, ctx.options;
	local window = { sent_count = 0 }; -- ever sent

	local in_flight = {}; -- link -> { held, time it was sent, what sends it again }, oldest first
	for _, link in ipairs(links.all) do
		link.count, link.bytes, in_flight[link] = 0, 0, ctx.new_fifo();
	end

	function window.open(link)
		return link.up and link.count < link.window and link.bytes < options.window_bytes;
	end

	-- It goes out now. Unless it is answered within `resend`, send_again(held, link) is called.
	function window.sent(held, link, send_again)
		if held.outstanding ~= link then
			window.answered(held);
			held.outstanding = link;
			link.count, link.bytes = link.count + 1, link.bytes + held.bytes;
		end
		local now = time_now();
		held.gen, held.again, held.ever_sent, held.sent_at = link.gen, true, true, now;
		window.sent_count = window.sent_count + 1;
		in_flight[link]:push({ held = held, at = now, send_again = send_again });
	end

	function window.answered(held)
		local link = held.outstanding;
		if link then
			held.outstanding = nil;
			link.count, link.bytes = link.count - 1, link.bytes - held.bytes;
		end
	end

	-- Nothing that was sent on it counts as sent any more; whoever holds it takes its marks off.
	function window.link_lost(link)
		in_flight[link]:clear();
	end

	local function resend(link, now)
		local sent = in_flight[link];
		while true do
			local first = sent:peek();
			if not first then break; end
			local held = first.held;
			if held.gone or not held.outstanding or held.gen ~= link.gen or held.sent_at ~= first.at then
				sent:pop();
			elseif now - first.at >= options.resend then
				sent:pop();
				module:log("debug", "No verdict for %s within %g s, asking again", held.key, options.resend);
				first.send_again(held, link);
			else
				break;
			end
		end
	end

	function window.sweep(now)
		for _, link in ipairs(links.live()) do resend(link, now); end
	end

	return window;
end
