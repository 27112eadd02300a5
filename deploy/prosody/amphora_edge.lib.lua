-- The sender's edge: messages with rules that are about to leave for another server. They wait
-- here for what that server supports and for a node's verdict, and nothing is kept of them: a
-- verdict comes with all that it sends, so a message can be given back to its sender at any time.
--
-- A message that waits ("held" below) is in the order of its pair of sender and recipient:
--   pair, domain, stanza, bytes   whose, where to, what; its link is that of the recipient
--   origin                        the session that sent it; nil if this host itself sends it on
--   key, stamp, xml               of a message with rules that a node is asked about
--   next_supports                 whether that server supports rules; nil while it is not known
--   asking, queued, resume_at     why it is not on its way to the node; queued: for that link
--   verdict                       an answer, which may wait for those before it
--   gen, sent_at, outstanding, again, ever_sent, gone   see amphora_window.lib.lua
-- One without rules ("follower") has none of those, and goes when it is first, or after `hold`.

local st = require "util.stanza";
local jid_split = require "util.jid".split;
local jid_bare = require "util.jid".bare;
local time_now = require "util.time".now;
local xpcall = require "util.xpcall".xpcall;

local xmlns_amp = "http://jabber.org/protocol/amp";

local host = module.host;
local hosts = prosody.hosts;
local full_sessions = prosody.full_sessions;

local SHARE = 4; -- one sender has a quarter of the room, so that others have some whatever he does
local RETRY_FIRST, RETRY_LAST = 0.25, 30; -- seconds until it is asked again after retry: doubled each time

return function (ctx)
	local facts, links, options, window = ctx.facts, ctx.links, ctx.options, ctx.window;
	local queue, servers = ctx.queue, ctx.servers;
	local new_fifo, escape = ctx.new_fifo, facts.escape;
	local edge = {};

	local pairs_of = {};  -- sender, zero byte, recipient's bare JID -> pair
	local keys = {};      -- key -> held
	local ready = {};     -- link -> those that can go to its node, in the order in which they could
	for _, link in ipairs(links.all) do ready[link] = new_fifo(); end
	local followers = new_fifo(); -- oldest first
	local paused = {};    -- held -> true
	local count, bytes = 0, 0;
	local shares = {};    -- sender's bare JID -> { count, bytes }
	local stopping;

	-- -------------------------------------------------------------------- going on

	-- What handlers of outgoing messages look at, for a session that has ended.
	local function stand_in(from)
		local username, _, resource = jid_split(from);
		return {
			type = "c2s", username = username, host = host, resource = resource, full_jid = from;
			log = module._log; -- luacheck: ignore 143
			send = function (reply)
				queue.send_out(reply);
				return true;
			end;
		};
	end

	local function event_name(to)
		local node, _, resource = jid_split(to);
		return "pre-message/"..(not node and "host" or resource and "full" or "bare");
	end

	-- Goes on as if the message had not been held. What comes before us in its event (privacy and
	-- block lists) looks at it once more, with what holds by now. The message is routed as it is and
	-- not as handlers left it in the event, which is what the server does.
	local function go_on(held)
		local stanza, origin = held.stanza, held.origin;
		if origin then
			local from = stanza.attr.from;
			if full_sessions[from] ~= origin then origin = stand_in(from); end
			local event = { origin = origin, stanza = stanza, amphora = true };
			if hosts[host].events.fire_event(event_name(stanza.attr.to), event) then return; end
		end
		module:send(stanza, origin);
	end

	-- Of what this host sends on, its rules say who sent it first, and to whom (section 4.1 of
	-- XEP-0079): the error is his, and tells nothing of where it was sent on to.
	local function bounce(held, type, condition, text)
		if held.silent then return; end
		local stanza = held.stanza;
		local amp = not held.origin and stanza:get_child("amp", xmlns_amp);
		if amp and amp.attr.from then
			stanza = st.message({ from = amp.attr.from, to = amp.attr.to, id = stanza.attr.id, type = stanza.attr.type });
		end
		queue.bounce(stanza, type, condition, text);
	end

	-- -------------------------------------------------------------------- pairs

	local function pair_of(stanza)
		return pairs_of[stanza.attr.from.."\0"..jid_bare(stanza.attr.to)];
	end

	local function hold(held)
		local stanza = held.stanza;
		local bare = jid_bare(stanza.attr.to);
		local name = stanza.attr.from.."\0"..bare;
		local pair = pairs_of[name];
		if not pair then
			pair = { name = name, bare = bare, list = new_fifo() };
			pairs_of[name] = pair;
		end
		held.pair, held.since = pair, time_now();
		pair.list:push(held);
		held.sender = jid_bare(stanza.attr.from);
		local share = shares[held.sender] or { count = 0, bytes = 0 };
		shares[held.sender] = share;
		share.count, share.bytes = share.count + 1, share.bytes + held.bytes;
		count, bytes = count + 1, bytes + held.bytes;
	end

	local function leave(held)
		window.answered(held);
		held.gone = true;
		paused[held] = nil;
		if held.key then keys[held.key] = nil; end
		local share = shares[held.sender];
		share.count, share.bytes = share.count - 1, share.bytes - held.bytes;
		if share.count == 0 then shares[held.sender] = nil; end
		count, bytes = count - 1, bytes - held.bytes;
	end

	local function carry_out(held)
		local what = held.verdict and held.verdict.what or "deliver";
		if what == "unavailable" then
			bounce(held, "cancel", "service-unavailable");
		elseif what == "deliver" then
			if held.key then facts.address_rules(held.stanza); end
			go_on(held);
		end
		if held.verdict and held.verdict.sends then queue.route_sends(held, held.verdict.sends); end
	end

	local function release(held)
		leave(held);
		local ok, err = xpcall(carry_out, debug.traceback, held);
		if not ok then module:log("error", "While a message for another server went on: %s", err); end
		held.stanza, held.xml, held.origin = nil, nil, nil; -- lists may still name it
	end

	-- Carries out what can be carried out, in the pair's order.
	local function advance(pair)
		if pair.busy then return; end
		pair.busy = true;
		local first = pair.list:peek();
		while first and (first.gone or first.verdict or first.follows) do
			pair.list:pop();
			if not first.gone then release(first); end
			first = pair.list:peek();
		end
		pair.busy = nil;
		if not first then pairs_of[pair.name] = nil; end
	end

	-- -------------------------------------------------------------------- sending

	local function enqueue(held)
		local link = links.of(held.pair.bare);
		if held.queued or held.gone or not link then return; end
		held.queued = link;
		ready[link]:push(held);
		ctx.schedule();
	end

	-- Asks whether its next server supports rules, and goes on to the node, or, if no node is to be
	-- asked, wherever the answer says.
	local function consult(held)
		if held.asking or held.gone then return; end
		held.asking = true;
		servers.support_amp(held.domain, function (supports)
			held.asking = nil;
			if held.gone or held.verdict then return; end
			held.next_supports = supports;
			if held.key then return enqueue(held); end
			held.verdict = { what = supports and "deliver" or "unavailable" };
			advance(held.pair);
		end);
	end

	local function send(held, link)
		local xml = "<intercept xmlns='urn:amphora:intercept:1' key='"..escape(held.key).."'"
			..(held.again and " again='true'" or "").." stage='rules' leg='sender' to='"
			..escape(held.pair.bare).."' next-supports-amp='"..tostring(held.next_supports)
			.."'><forwarded xmlns='urn:xmpp:forward:0'><delay xmlns='urn:xmpp:delay' stamp='"..escape(held.stamp).."'/>"
			..held.xml.."</forwarded></intercept>";
		window.sent(held, link, send);
		links.emit_intercept(link, xml);
	end

	function edge.pump(link)
		while window.open(link) do
			local held = ready[link]:pop();
			if not held then break; end
			if held.queued == link then
				held.queued = nil;
				if not held.gone and not held.verdict then send(held, link); end
			end
		end
	end

	-- -------------------------------------------------------------------- intake

	-- Without a node for so long, or with the server about to end, nothing is held.
	local function without_node()
		return stopping or (not links.up and time_now() - links.lost_at >= options.hold);
	end

	local function is_full(sender)
		local share = shares[sender];
		return count >= options.edge_messages or bytes >= options.edge_bytes
			or (share and (share.count >= options.edge_messages / SHARE or share.bytes >= options.edge_bytes / SHARE));
	end

	-- Holds it if there is room. What there is no room for is refused.
	local function admit(held)
		if is_full(jid_bare(held.stanza.attr.from)) then
			bounce(held, "wait", "resource-constraint", "Too many messages wait to leave this server");
			return false;
		end
		hold(held);
		return true;
	end

	local function follow(held)
		held.follows, held.bytes = true, #tostring(held.stanza);
		if admit(held) then followers:push(held); end
	end

	local function take(held)
		held.xml = facts.serialise(held.stanza);
		held.bytes = #held.xml;
		if facts.too_large(held.stanza, held.bytes, ctx.max_stanza) then
			bounce(held, "modify", "policy-violation", "The message is too large for its rules to be processed");
		elseif without_node() then
			bounce(held, "cancel", "service-unavailable");
		elseif admit(held) then
			held.key, held.stamp = ctx.new_key(), facts.timestamp();
			keys[held.key] = held;
			consult(held);
		end
	end

	-- A message that one of our users sends. True if it is held, or refused.
	function edge.intercept(event)
		if event.amphora then return; end
		local origin, stanza = event.origin, event.stanza;
		local to = stanza.attr.to;
		if origin.type ~= "c2s" or not to then return; end
		local _, domain = jid_split(to);
		if hosts[domain] then
			-- Those for our own users are addressed once they were looked at.
			if domain ~= host and facts.has_rules(stanza) then facts.address_rules(stanza); end
			return;
		end
		local held = { stanza = stanza, origin = origin, domain = domain };
		if facts.has_rules(stanza) then
			take(held);
			return true;
		elseif next(pairs_of) and pair_of(stanza) then
			follow(held);
			return true;
		end
	end

	-- Routes a stanza that this host itself sends on, in the order of its pair. If it carries rules
	-- and goes to another server, that one is asked first whether it supports them, and an error goes
	-- back if it does not, unless `silent`. No node is asked: one has decided about it already.
	function edge.relay(stanza, silent)
		local _, domain = jid_split(stanza.attr.to);
		local held = { stanza = stanza, domain = domain, silent = silent };
		if hosts[domain] then
			go_on(held);
		elseif facts.has_rules(stanza) then
			held.bytes = #tostring(stanza);
			if stopping then
				bounce(held, "cancel", "service-unavailable");
			elseif admit(held) then
				consult(held);
			end
		elseif pair_of(stanza) then
			follow(held);
		else
			go_on(held);
		end
	end

	-- -------------------------------------------------------------------- verdicts

	local function ask_later(held)
		held.tries = (held.tries or 0) + 1;
		held.resume_at = time_now() + math.min(RETRY_FIRST * 2 ^ math.min(held.tries - 1, 20), RETRY_LAST);
		held.gen = nil;
		paused[held] = true;
	end

	-- True if the verdict was for a message that is held here, whether it counted or not.
	function edge.verdict(element, link)
		local attr = element.attr;
		local held = attr.key and keys[attr.key];
		if not held then return false; end
		local what = attr["do"];
		if attr.stage ~= "rules" or held.gen ~= link.gen or held.verdict then
			module:log("debug", "Verdict for %s at %s counts no more", attr.key, attr.stage);
		elseif what == "retry" then
			window.answered(held);
			ask_later(held);
		elseif what == "deliver" or what == "discarded" then
			window.answered(held);
			local sends = {};
			for tag in element:childtags("send") do sends[#sends + 1] = tag; end
			held.verdict = { what = what, sends = sends };
			advance(held.pair);
		else
			module:log("warn", "Verdict %s for %s on its way out has no meaning, left out", what, held.key);
		end
		return true;
	end

	-- -------------------------------------------------------------------- links and time

	-- What was sent to another link, or to none that is there, counts as not sent; all goes by the
	-- present one, in each pair's order.
	local function send_anew(held)
		window.answered(held);
		held.gen, held.verdict, held.queued, held.next_supports = nil, nil, nil, nil;
		if links.up then
			paused[held], held.tries = nil, nil;
			consult(held);
		end
	end

	-- Recipients for whom moved(bare) is true belong to another link now, or to none.
	function edge.moved(moved)
		local list = {};
		for _, pair in pairs(pairs_of) do
			if moved(pair.bare) then list[#list + 1] = pair; end
		end
		for _, pair in ipairs(list) do
			for i = pair.list.first, pair.list.last do
				local held = pair.list[i];
				if held.key and not held.gone then send_anew(held); end
			end
		end
	end

	-- No node will look at what is held. In each pair's order it goes back to its sender, and what
	-- waited behind it goes on.
	local function give_back(why)
		local list, n = {}, 0;
		for _, pair in pairs(pairs_of) do list[#list + 1] = pair; end
		for _, pair in ipairs(list) do
			for i = pair.list.first, pair.list.last do
				local held = pair.list[i];
				if not held.gone and not held.follows and (held.key or stopping) then
					held.verdict = { what = "unavailable" };
					n = n + 1;
				end
			end
			advance(pair);
		end
		if n > 0 then module:log("info", "%s: %d messages with rules for other servers went back to their senders", why, n); end
	end

	function edge.stop(why)
		stopping = true;
		give_back(why);
	end

	function edge.sweep(now)
		for held in pairs(paused) do
			if now >= held.resume_at then
				paused[held] = nil;
				consult(held);
			end
		end
		if without_node() and next(keys) then give_back("No node"); end
		while true do
			local follower = followers:peek();
			if not follower or (not follower.gone and now - follower.since < options.hold) then break; end
			followers:pop();
			if not follower.gone then
				release(follower);
				advance(follower.pair);
			end
		end
	end

	function edge.held() return count, bytes; end

	return edge;
end
