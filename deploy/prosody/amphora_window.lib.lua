-- The link's window: what was sent to the node and is not answered, whoever sent it.
--
-- A held message takes part with these fields:
--   bytes                 what it counts for
--   outstanding           it is in the window
--   gen, sent_at          the link that it was sent on last, and when; gen is nil if it is to be sent
--   again, ever_sent      it may have been sent before; it was
--   gone                  nobody waits for its answer any more

local time_now = require "util.time".now;

return function (ctx)
	local link, options = ctx.link, ctx.options;
	local window = { sent_count = 0 }; -- ever sent

	local in_flight = ctx.new_fifo(); -- { held, time it was sent, what sends it again }, oldest first

	function window.open()
		return link.up and link.count < link.window and link.bytes < options.window_bytes;
	end

	-- It goes out now. Unless it is answered within `resend`, send_again(held) is called.
	function window.sent(held, send_again)
		if not held.outstanding then
			held.outstanding = true;
			link.count, link.bytes = link.count + 1, link.bytes + held.bytes;
		end
		local now = time_now();
		held.gen, held.again, held.ever_sent, held.sent_at = link.gen, true, true, now;
		window.sent_count = window.sent_count + 1;
		in_flight:push({ held = held, at = now, send_again = send_again });
	end

	function window.answered(held)
		if held.outstanding then
			held.outstanding = nil;
			link.count, link.bytes = link.count - 1, link.bytes - held.bytes;
		end
	end

	-- Nothing that was sent counts as sent any more; whoever holds it takes its marks off.
	function window.link_lost()
		in_flight:clear();
		link.count, link.bytes = 0, 0;
	end

	function window.sweep(now)
		while true do
			local first = in_flight:peek();
			if not first then break; end
			local held = first.held;
			if held.gone or not held.outstanding or held.gen ~= link.gen or held.sent_at ~= first.at then
				in_flight:pop();
			elseif now - first.at >= options.resend then
				in_flight:pop();
				module:log("debug", "No verdict for %s within %g s, asking again", held.key, options.resend);
				first.send_again(held);
			else
				break;
			end
		end
	end

	return window;
end
