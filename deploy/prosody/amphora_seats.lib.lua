-- The sessions: their gates, their announcement to the node, what it hands over to them, and
-- what they acknowledge. The state that goes with a session is called its seat. It belongs to
-- the session for ever, over resumptions too, not to the resource.
--
--   id, n, done        name on the link; number of the last reason to announce, and of the last answer
--   gate               open; closed: chat and normal messages wait; releasing: they are being written
--   waiting            what waits in the gate, in order
--   out                what is to be written next: items handed over, and what the gate lets go
--   items              id -> item, written or to be written, until the node has deleted its row
--   track, wire        what was written and is not acknowledged, by position; not drained yet
--   batches, ended     what the node is told was taken, until it says deleted
--   fetches            its client fetches for itself what is stored (XEP-0013)
--   parked             it sleeps, and its hand-over is left to a session that is awake
--   read               when the client read the archive, before it became available
--   told               the stream of the link whose node was told of it
--   in_line, counted   the link to which it is to be announced; on which that is not answered at all

local st = require "util.stanza";
local filters = require "util.filters";
local time_now = require "util.time".now;
local xpcall = require "util.xpcall".xpcall;
local add_task = require "util.timer".add_task;
local t_concat, t_sort = table.concat, table.sort;

-- Of the queue of mod_smacks, left to stanzas that do not wait: presence, iq, rooms.
local SPARE = 50;

local host = module.host;
local bare_sessions = prosody.bare_sessions;

return function (ctx)
	local facts, links, options = ctx.facts, ctx.links, ctx.options;
	local escape = facts.escape;
	local new_fifo = ctx.new_fifo;
	local seats = {};

	local by_session = setmetatable({}, { __mode = "k" });
	local by_id = {};
	local next_seat, next_entry = 0, 0;
	local unanswered = {};      -- seats whose announcement has no handed-over yet
	local announcements, to_announce = {}, {}; -- of each link: of those, sent and not answered at all; to be sent
	for _, link in ipairs(links.all) do
		announcements[link], to_announce[link] = 0, new_fifo();
	end
	local reporting = {};       -- seats with taken to be repeated
	local renewals = {};        -- users for whom something was stored while a session could take it
	local unacknowledged = {};  -- seats whose client was asked what it got
	local passing;              -- the stanza that we write ourselves, past the gate

	function seats.of(session) return by_session[session]; end

	-- Has a session of the user's that stays read the archive at that time? Both ends belong to it.
	function seats.read_between(bare, first, last)
		local user = bare_sessions[bare];
		for _, session in pairs(user and user.sessions or {}) do
			local seat = by_session[session];
			if seat and seat.read and not seat.closing and seat.read >= first and seat.read <= last then return true; end
		end
		return false;
	end

	function seats.can_take(seat)
		local session = seat.session;
		return not seat.closing and not seat.over and session.presence and (session.priority or -1) >= 0;
	end

	-- Does a session of the user fetch for itself? Then nothing is handed over to any of them that
	-- was not announced before. Asked of the sessions, so that it ends with the last of them.
	local function fetched_by_one(bare)
		local user = bare_sessions[bare];
		for _, session in pairs(user and user.sessions or {}) do
			local seat = by_session[session];
			if seat and seat.fetches then return true; end
		end
		return false;
	end

	-- -------------------------------------------------------------------- positions

	-- Counters of XEP-0198 for this session: its outgoing queue, or nil without stream management.
	local function sm_queue(seat)
		local session = seat.session;
		return session.smacks and session.outgoing_stanza_queue or nil;
	end

	local function position(q) return q:count_acked() + q:count_unacked(); end

	-- -------------------------------------------------------------------- taken

	local function report_batch(seat, batch)
		local ids = {};
		for i, item in ipairs(batch.items) do ids[i] = item.id; end
		batch.at = time_now();
		reporting[seat] = true;
		local link = links.of(seat.bare);
		if link then
			links.emit(link, ("<taken xmlns='urn:amphora:intercept:1' for='%s' session='%s' batch='%s' ids='%s'/>")
				:format(escape(seat.bare), escape(seat.id), escape(batch.n), escape(t_concat(ids, " "))));
		end
	end

	local function report_end(seat)
		seat.ended.at = time_now();
		reporting[seat] = true;
		local link = links.of(seat.bare);
		if link then
			links.emit(link, ("<taken xmlns='urn:amphora:intercept:1' for='%s' session='%s' batch='%s' ids='%s' ended='true'/>")
				:format(escape(seat.bare), escape(seat.id), escape(seat.ended.n), escape(t_concat(seat.ended.ids, " "))));
		end
	end

	local function acknowledge(seat, entry)
		if entry.window then seat.in_flight = seat.in_flight - 1; end
		if entry.copy then entry.copy.acked = true; end
		local item = entry.item;
		if item and not item.acked then
			item.acked = true;
			for _, batch in ipairs(item.batches) do
				batch.pending = batch.pending - 1;
				if batch.pending == 0 and not seat.over then
					if batch.view then ctx.retrieve.taken(batch); else report_batch(seat, batch); end
				end
			end
			item.batches = nil;
		end
	end

	local write_on;

	local function process_acks(seat)
		local q = sm_queue(seat);
		if not q then return; end
		local acked = q:count_acked();
		while true do
			local first = seat.track:peek();
			if not first or first.pos > acked then break; end
			seat.track:pop();
			acknowledge(seat, first);
		end
		write_on(seat);
	end

	-- Everything written so far has been given to the socket.
	local function process_drain(seat)
		if seat.wire:empty() then return; end
		local entry = seat.wire:pop();
		while entry do
			acknowledge(seat, entry);
			entry = seat.wire:pop();
		end
		write_on(seat);
	end

	-- -------------------------------------------------------------------- writing

	-- Writes past the gate and notes when it will be acknowledged. False if the session took it not.
	local function put(seat, stanza, entry)
		local session = seat.session;
		local q = sm_queue(seat);
		local before = q and position(q);
		passing = stanza;
		local ok = session.send(stanza);
		passing = nil;
		if not ok or seat.over then return false; end
		entry.window = true;
		seat.in_flight = seat.in_flight + 1;
		if q then
			local after = position(q);
			-- A filter of another module may have kept the stanza back: then the next position
			-- is waited for, and it can't be told which one fails.
			entry.pos, entry.exact = math.max(after, before + 1), after == before + 1;
			seat.sm = q;
			seat.track:push(entry);
		elseif session.conn then
			seat.wire:push(entry);
		else
			acknowledge(seat, entry); -- BOSH: there is nothing to wait for
		end
		return true;
	end

	local function request_ack(seat, again)
		local session = seat.session;
		if not sm_queue(seat) or session.hibernating or seat.closing then return; end
		if session.awaiting_ack and not again then return; end
		seat.asked_at = time_now();
		unacknowledged[seat] = true;
		session.awaiting_ack = true;
		session.send(st.stanza("r", { xmlns = session.smacks }));
		if session.outgoing_stanza_queue then session.last_requested_h = position(session.outgoing_stanza_queue); end
	end

	local function room(seat)
		local q = sm_queue(seat);
		return seat.in_flight < options.session_window
			and (not q or q:count_unacked() < options.smacks_queue - SPARE);
	end

	-- Writes what is next as far as the window allows, and opens a gate that has nothing left.
	local function write_out(seat)
		while not seat.over do
			local entry = seat.out:peek();
			if not entry then
				if seat.gate ~= "releasing" then break; end
				entry = seat.waiting:pop();
				if not entry then
					seat.gate = "open";
					break;
				end
				seat.waiting_bytes = seat.waiting_bytes - entry.bytes;
				seat.out:push(entry);
			end
			if not room(seat) then break; end
			if not put(seat, entry.stanza, entry) then break; end
			seat.out:pop();
			entry.stanza = nil;
			if entry.pos then entry.whole = nil; end -- mod_smacks has it, and gives it back
			if entry.copy and entry.copy.gated then ctx.broadcasts.let_out(entry.copy.key); end
			if entry.reply then ctx.retrieve.written(entry.reply); end
		end
	end

	function write_on(seat)
		if seat.writing or seat.closing then return; end
		seat.writing = true;
		if seat.at_once ~= seat.session.conn and not seat.out:empty() then
			seat.at_once = seat.session.conn;
			facts.send_at_once(seat.at_once, true);
		end
		local together = facts.write_together(seat.session);
		local before = seat.in_flight;
		-- Another module's filter may fail: the connection must not stay locked for that.
		local ok, problem = xpcall(write_out, debug.traceback, seat);
		seat.writing, passing = nil, nil;
		if seat.in_flight > before and not seat.over then
			unacknowledged[seat], seat.asked_at = true, seat.asked_at or time_now();
			request_ack(seat);
		end
		if together then together:resume_writes(); end
		if not ok then error(problem, 0); end
	end

	-- Writes what a request of the session's own brings, behind what is to be written already.
	function seats.write(seat, ...)
		for _, entry in ipairs({ ... }) do seat.out:push(entry); end
		write_on(seat);
	end

	-- -------------------------------------------------------------------- the gate

	local function same_message(context, stanza)
		return context and context.id == stanza.attr.id and context.from == stanza.attr.from;
	end

	local function several_sessions(seat)
		local user = bare_sessions[seat.bare];
		local sessions = user and user.sessions;
		local first = sessions and next(sessions);
		return first and next(sessions, first) ~= nil;
	end

	-- The record that the copies of one message share, where they can matter: it was
	-- intercepted before, or another session may get it as well.
	local function copy_of(seat, stanza)
		local context = ctx.queue.routing();
		if not context or not (context.key or several_sessions(seat)) then return nil; end
		if not same_message(context, stanza) then
			local _, inner = facts.carbon(stanza);
			if not inner or not same_message(context, inner) then return nil; end
		end
		context.copies = context.copies + 1;
		return context;
	end

	-- The message that a carbon was made of, or the carbon of what the user sent himself.
	local function without_carbon(stanza)
		local way, inner = facts.carbon(stanza);
		if way == "received" and inner then return facts.unqualify(st.clone(inner)), way; end
		return stanza, way;
	end

	local close_gate, park;

	-- What waits in a user's gates is intercepted, in the order in which it came there, once if
	-- it waits in several, whether or not an open session has it as well: it is for a closed one.
	local function empty_gates(bare)
		local entries, emptied = {}, {};
		local present = ctx.queue.routing(); -- the message that is being routed stays where it is
		for _, session in pairs((bare_sessions[bare] or {}).sessions or {}) do
			local seat = by_session[session];
			if seat and not seat.waiting:empty() then
				local stays = {};
				for entry in function () return seat.waiting:pop(); end do
					entry.seat = seat;
					local list = entry.copy and entry.copy == present and stays or entries;
					list[#list + 1] = entry;
				end
				seat.waiting_bytes = 0;
				for _, entry in ipairs(stays) do
					seat.waiting:push(entry);
					seat.waiting_bytes = seat.waiting_bytes + entry.bytes;
				end
				emptied[#emptied + 1] = seat;
			end
		end
		t_sort(entries, function (a, b) return a.number < b.number; end);
		for _, entry in ipairs(entries) do
			local copy = entry.copy;
			if copy then copy.copies = copy.copies - 1; end
			-- What is stored goes to a session that is awake: not what that one has already.
			local elsewhere = entry.seat.parked and copy and (copy.acked or copy.copies > 0);
			if not (copy and copy.kept) and not elsewhere then
				if copy then copy.kept, copy.acked = true, true; end
				ctx.queue.undelivered(bare, without_carbon(entry.whole), copy, entry.stamp, entry.seat.jid);
			end
		end
		for _, seat in ipairs(emptied) do
			if not unanswered[seat] and not seat.parked then close_gate(seat); end
		end
	end

	-- mod_smacks says what it queues for a session that sleeps, and push notifications are made
	-- of that. What waits in the gate is as much for it.
	local function tell_of_waiting(seat, stanza)
		local q = sm_queue(seat);
		if not q then return; end
		module:fire_event("smacks-hibernation-stanza-queued", { origin = seat.session, queue = q:table(), stanza = stanza });
	end

	local function wait_in_gate(seat, stanza, copy)
		next_entry = next_entry + 1;
		local entry = {
			stanza = st.clone(stanza), copy = copy, bytes = #tostring(stanza), stamp = facts.timestamp(), number = next_entry;
		};
		entry.whole = entry.stanza;
		if seat.waiting:count() >= options.gate_messages or seat.waiting_bytes + entry.bytes > options.gate_bytes then
			module:log("info", "The gate of %s is full, its %d messages are intercepted", seat.jid, seat.waiting:count());
			empty_gates(seat.bare);
		end
		seat.waiting:push(entry);
		seat.waiting_bytes = seat.waiting_bytes + entry.bytes;
		if seat.session.hibernating then tell_of_waiting(seat, stanza); end
	end

	local function is_chat(stanza)
		if stanza.name ~= "message" then return false; end
		local ns, kind = stanza.attr.xmlns, stanza.attr.type;
		return (not ns or ns == "jabber:client") and (not kind or kind == "chat" or kind == "normal")
			and not facts.is_archive_result(stanza);
	end

	-- A full queue of mod_smacks forgets its oldest stanza for the next one. If that is a message,
	-- nobody else would know that it was never acknowledged.
	local function rescue(seat, q)
		local oldest = q._queue:peek();
		if not oldest or not is_chat(oldest) then return; end
		local pos = position(q) - q._queue:count() + 1;
		local copy;
		for i = seat.track.first, seat.track.last do
			local entry = seat.track[i];
			if entry.pos >= pos then
				if entry.pos == pos and entry.exact then
					if entry.item then return; end
					copy, entry.copy = entry.copy, nil;
				end
				break;
			end
		end
		local stanza = st.clone(oldest);
		local stamp = facts.take_smacks_delay(stanza, seat.bare);
		seats.lost(seat, stanza, copy, stamp);
	end

	-- The one place where what goes to a session is held up.
	local function outgoing(stanza, session)
		if session.resending_unacked then return stanza; end
		local seat = by_session[session];
		if not seat then return stanza; end
		local q = sm_queue(seat);
		if q and not stanza.attr.xmlns and q._queue:count() >= q._queue.size then rescue(seat, q); end
		if stanza == passing or not is_chat(stanza) then return stanza; end
		local copy = copy_of(seat, stanza);
		if seat.gate == "open" and q and q:count_unacked() >= options.smacks_queue - SPARE and seats.can_take(seat) then
			module:log("info", "%s has not acknowledged %d stanzas, messages wait", seat.jid, q:count_unacked());
			-- Where nothing is handed over, they wait for room alone.
			if fetched_by_one(seat.bare) then seat.gate = "releasing"; else close_gate(seat); end
		end
		if seat.gate ~= "open" then
			wait_in_gate(seat, stanza, copy);
			return nil;
		end
		if copy then
			copy.written = true;
			if q then
				seat.sm = q;
				seat.track:push({ pos = position(q) + 1, exact = true, copy = copy });
			else
				copy.acked = true;
			end
		end
		return stanza;
	end

	local function watch(session)
		filters.add_filter(session, "stanzas/out", outgoing, 1000);
	end

	-- -------------------------------------------------------------------- announcing

	local function count_no_more(seat)
		local link = seat.counted;
		if link then
			seat.counted = nil;
			announcements[link] = announcements[link] - 1;
		end
	end

	local function forget_announcement(seat)
		unanswered[seat] = nil;
		count_no_more(seat);
	end

	local function announce(seat)
		local session, link = seat.session, links.of(seat.bare);
		if not seat.counted and not seat.answered then
			seat.counted = link;
			announcements[link] = announcements[link] + 1;
		end
		seat.announced_at, seat.announced, seat.told = time_now(), seat.n, link.session;
		local archive = seat.read and "true' read='"..seat.read or "false";
		links.emit(link, ("<available xmlns='urn:amphora:intercept:1' session='%s' n='%d' jid='%s' "
			.."priority='%d' acks='%s' archive='%s'/>"):format(escape(seat.id), seat.n, escape(seat.jid),
				session.priority or 0, session.smacks and "true" or "false", archive));
	end

	-- Announced when all that was there before its reason is settled.
	local function may_announce(seat)
		return unanswered[seat] and seats.can_take(seat) and ctx.queue.settled(seat.bare, seat.barrier);
	end

	local function want_announcement(seat)
		local link = links.of(seat.bare);
		if link and seat.announced ~= seat.n and not seat.in_line and may_announce(seat) then
			seat.in_line = link;
			to_announce[link]:push(seat);
			ctx.schedule();
		end
	end

	-- A reason to announce a session: its gate closes. None where a session fetches for itself.
	function close_gate(seat)
		if fetched_by_one(seat.bare) then return; end
		local now = time_now();
		seat.n = seat.n + 1;
		seat.barrier = ctx.queue.seq();
		seat.answered, seat.answer_at = nil, now;
		seat.ended, seat.parked = nil, nil;
		if not seat.limited then seat.gate = "closed"; end
		unanswered[seat] = true;
		want_announcement(seat);
	end

	local function release(seat)
		seat.gate = "releasing";
		write_on(seat);
	end

	local function check_gate(seat)
		if renewals[seat.bare] then return; end -- what was just stored comes first
		if seat.gate == "closed" and seat.done == seat.n and ctx.queue.settled(seat.bare, seat.done_seq) then
			release(seat);
		end
		if unanswered[seat] then want_announcement(seat); end
	end

	function seats.check_user(bare)
		local user = bare_sessions[bare];
		for _, session in pairs(user and user.sessions or {}) do
			local seat = by_session[session];
			if seat and seat.n > 0 then check_gate(seat); end
		end
	end

	-- Something was stored for the user: if a session could take it, it is asked for again.
	function seats.stored(bare)
		if bare_sessions[bare] then
			renewals[bare] = true;
			ctx.schedule();
		end
	end

	-- Is what is stored for it? Then its gate is closed, answered or not: what came back out of that
	-- gate may have been stored since the answer.
	local function waits(seat)
		return unanswered[seat] ~= nil or (seat.gate == "closed" and not seat.parked);
	end

	-- The session that is to get what is stored: of those that wait for it the one announced first, or
	-- the one with the highest priority.
	local function taker(bare)
		local user = bare_sessions[bare];
		local best;
		for _, session in pairs(user and user.sessions or {}) do
			local seat = by_session[session];
			if seat and seats.can_take(seat) then
				if not best then
					best = seat;
				elseif waits(seat) ~= waits(best) then
					if waits(seat) then best = seat; end
				elseif waits(seat) then
					if (seat.announced_at or math.huge) < (best.announced_at or math.huge) then best = seat; end
				elseif (session.hibernating ~= nil) ~= (best.session.hibernating ~= nil) then
					if not session.hibernating then best = seat; end
				elseif session.priority > best.session.priority then
					best = seat;
				end
			end
		end
		return best;
	end

	local function renew(bare)
		local seat = taker(bare);
		if not seat then return; end
		if unanswered[seat] and seat.announced ~= seat.n then
			want_announcement(seat); -- it has not been sent yet, and will cover this
		else
			close_gate(seat);
		end
	end

	function seats.pump()
		if next(renewals) then
			local list = renewals;
			renewals = {};
			for bare in pairs(list) do
				renew(bare);
				seats.check_user(bare);
			end
		end
		for _, link in ipairs(links.live()) do
			while announcements[link] < options.available_window do
				local seat = to_announce[link]:pop();
				if not seat then break; end
				if seat.in_line == link then
					seat.in_line = nil;
					if seat.announced ~= seat.n and may_announce(seat) then announce(seat); end
				end
			end
		end
	end

	-- What a link says of a session counts while it is its user's.
	local function counts(seat, link) return links.of(seat.bare) == link; end

	-- The session fetches for itself from now on. A hand-over that has its reason already goes on.
	function seats.fetches(seat) seat.fetches = true; end

	function seats.handed_over(element, link)
		local seat = by_id[element.attr.session];
		if not seat or seat.over or not counts(seat, link) then return; end
		if tonumber(element.attr.n) ~= seat.n or seat.announced ~= seat.n then return; end
		forget_announcement(seat);
		seat.done, seat.done_seq = seat.n, ctx.queue.seq();
		seat.answer_at = time_now();
		seat.limited = nil;
		module:log("debug", "%s: %s stored messages were handed over", seat.jid, element.attr.count or "?");
		check_gate(seat);
	end

	-- -------------------------------------------------------------------- hand-over

	-- The message of an item. Nobody else looks at the element, so it is not copied.
	function seats.item_stanza(element)
		local forwarded = element:get_child("forwarded", "urn:xmpp:forward:0");
		local message = forwarded and forwarded:get_child("message", "jabber:client");
		if not message then return nil; end
		facts.unqualify(message);
		facts.take_delay(message, forwarded:get_child("delay", "urn:xmpp:delay"));
		return message;
	end

	function seats.hand_over(element, link)
		local id, n = element.attr.session, element.attr.batch;
		if not id or not n then
			module:log("warn", "A hand-over without session or batch was left out");
			return;
		end
		local seat = by_id[id];
		if not seat then
			links.emit(link, ("<taken xmlns='urn:amphora:intercept:1' for='' session='%s' batch='%s' ids='' ended='true'/>")
				:format(escape(id), escape(n)));
			return;
		end
		if not counts(seat, link) then return; end
		if seat.over or seat.parked or not seats.can_take(seat) then
			if seat.ended then
				seat.ended.n = n;
				report_end(seat);
			elseif seat.parked then
				park(seat, n);
			else
				seats.stand_down(seat, n);
			end
			return;
		end
		count_no_more(seat);
		seat.answered, seat.answer_at, seat.last_batch = true, time_now(), n;
		local batch = { n = n, items = {}, pending = 0 };
		local old = seat.batches[n];
		for item_element in element:childtags("item") do
			local item_id = item_element.attr.id;
			local item = item_id and seat.items[item_id];
			if item_id and not item then
				local message = seats.item_stanza(item_element);
				item = { id = item_id, batches = {} };
				if not message then
					-- Not taken, so that it stays where it is and someone can look at it.
					module:log("error", "Item %s for %s can't be read", item_id, seat.jid);
					item = nil;
				elseif message.attr.from and facts.blocks(seat.username, message.attr.from) then
					item.acked = true;
				else
					seat.out:push({ stanza = message, item = item });
				end
				seat.items[item_id] = item;
			end
			if item then
				batch.items[#batch.items + 1] = item;
				if not item.acked then
					batch.pending = batch.pending + 1;
					item.batches[#item.batches + 1] = batch;
				end
			end
		end
		if old then
			-- The same batch again, or a node that counts anew: its taken covers both.
			local known = {};
			for _, item in ipairs(batch.items) do known[item] = true; end
			for _, item in ipairs(old.items) do
				if item.acked and not known[item] then batch.items[#batch.items + 1] = item; end
			end
		end
		seat.batches[n] = batch;
		write_on(seat);
		if batch.pending == 0 and not seat.over and seat.batches[n] == batch and not batch.at then
			report_batch(seat, batch);
		end
	end

	local function forget_seat(seat)
		if seat.over and not seat.ended then
			by_id[seat.id] = nil;
			reporting[seat] = nil;
		end
	end

	function seats.deleted(element, link)
		local seat = by_id[element.attr.session];
		if not seat or not counts(seat, link) then return; end
		local n = element.attr.batch;
		if seat.ended and seat.ended.n == n then
			for _, id in ipairs(seat.ended.ids) do seat.items[id] = nil; end
			seat.ended = nil;
			return forget_seat(seat);
		end
		local batch = seat.batches[n];
		if batch and batch.at then
			seat.batches[n] = nil;
			for _, item in ipairs(batch.items) do
				if item.acked then seat.items[item.id] = nil; end
			end
		end
	end

	-- The session takes no more of a hand-over, and the node keeps what was not acknowledged.
	-- True if that may be something.
	local function give_back(seat, n)
		forget_announcement(seat);
		local ids, left = {}, seat.done ~= seat.n;
		for id, item in pairs(seat.items) do
			if item.acked then ids[#ids + 1] = id; else left = true; end
		end
		-- A node forgets with its link which sessions there are: it need only know of the end of
		-- one that was announced to it, and of what was acknowledged.
		if seat.told or n or ids[1] then
			seat.ended = { n = n or seat.last_batch or "0", ids = ids };
			report_end(seat);
		end
		seat.batches, seat.last_batch = {}, nil;
		local out = seat.out;
		seat.out = new_fifo();
		for entry in function () return out:pop(); end do
			if entry.item and not entry.item.view then
				seat.items[entry.item.id] = nil;
			else
				seat.out:push(entry);
			end
		end
		return left;
	end

	-- It ended, or fell below zero: what waits in its gate is intercepted.
	function seats.stand_down(seat, n)
		local left = give_back(seat, n);
		local out = seat.out;
		seat.out, seat.parked = new_fifo(), nil;
		local waiting = seat.waiting;
		seat.waiting, seat.waiting_bytes, seat.gate, seat.limited = new_fifo(), 0, "open", nil;
		seat.done = seat.n;
		for _, list in ipairs({ out, waiting }) do
			for entry in function () return list:pop(); end do
				if entry.reply or entry.item then
					if not seat.over then seat.out:push(entry); end -- a request needs no presence
				else
					seats.lost(seat, entry.whole, entry.copy, entry.stamp);
				end
			end
		end
		if left then seats.stored(seat.bare); end -- the node has it, and another session may take it
	end

	-- It sleeps while another is awake, which is to have what it left. Its gate stays closed, for what
	-- waits there is newer: it is announced again when it wakes, or when nobody else is there.
	function park(seat, n)
		give_back(seat, n);
		seat.parked, seat.announced = true, nil;
	end

	local function has_unacknowledged(seat)
		for _, item in pairs(seat.items) do
			if not item.acked then return true; end
		end
		return false;
	end

	-- A session that becomes available does not wait for those that sleep.
	local function pass_sleeping(awake)
		local user = bare_sessions[awake.bare];
		for _, session in pairs(user and user.sessions or {}) do
			local seat = by_session[session];
			if seat and seat ~= awake and session.hibernating and not seat.parked
			and (unanswered[seat] or has_unacknowledged(seat)) then
				park(seat);
			end
		end
	end

	-- A message that a session that ended had not acknowledged. It comes back only if no other
	-- session has it or may still acknowledge it; a copy of what the user sent never does, for
	-- the session that sent it has it.
	function seats.lost(seat, stanza, copy, stamp)
		if copy then
			copy.copies = copy.copies - 1;
			if copy.acked or copy.copies > 0 then return; end
		end
		local message, way = without_carbon(stanza);
		if way == "sent" then return; end
		local kept;
		local function come_back()
			kept = true;
			ctx.queue.undelivered(seat.bare, message, copy, stamp);
			return true;
		end
		if taker(seat.bare) or (seat.session.mam_requested and facts.is_archived(message, seat.bare)) then
			come_back();
			return;
		end
		-- Nobody is there: the same event as for any message to someone who is away, for push.
		local ok, err = xpcall(module.fire_event, debug.traceback, module, "message/offline/handle", {
			origin = seat.session, username = seat.username, stanza = message, amphora = come_back;
		});
		if ok then return; end
		module:log("error", "While a message that %s left was offered to other modules: %s", seat.jid, err);
		if not kept then come_back(); end
	end

	-- mod_smacks gives up a session and offers what it had not acknowledged, in order.
	local function failed(event)
		local session, stanza = event.session, event.stanza;
		local seat = by_session[session];
		if not seat or stanza.name ~= "message" or (stanza.attr.xmlns and stanza.attr.xmlns ~= "jabber:client") then return; end
		local kind = stanza.attr.type;
		if kind and kind ~= "chat" and kind ~= "normal" then
			-- It comes to nothing, and mod_smacks would tell its sender that somebody was there.
			return ctx.queue.is_silent(seat.username, stanza) or nil;
		end
		seat.closing = true; -- it is on its way out, but still listed
		local entry;
		local q = seat.sm;
		if q then
			-- what was written before has gone one way or the other, what comes after is still there
			local pos = position(q) - q._queue:count();
			local first = seat.track:peek();
			while first and first.pos <= pos do
				seat.track:pop();
				if first.pos == pos and first.exact then entry = first; break; end
				if first.copy then first.copy.copies = first.copy.copies - 1; end
				first = seat.track:peek();
			end
		end
		if entry and entry.item then return true; end -- the node still has it
		if facts.is_archive_result(stanza) then return true; end
		local stamp = facts.take_smacks_delay(stanza, seat.bare);
		seats.lost(seat, stanza, entry and entry.copy, stamp);
		return true;
	end

	-- -------------------------------------------------------------------- life of a session

	local function new_seat(session)
		next_seat = next_seat + 1;
		local seat = {
			id = ("%s-s%d"):format(ctx.token, next_seat);
			session = session, username = session.username, bare = session.username.."@"..host, jid = session.full_jid;
			n = 0, done = 0, barrier = 0, gate = "open", in_flight = 0, waiting_bytes = 0;
			waiting = new_fifo(), out = new_fifo(), track = new_fifo(), wire = new_fifo();
			items = {}, batches = {};
		};
		by_session[session], by_id[seat.id] = seat, seat;
		watch(session);
		return seat;
	end

	-- A client that reads the archive before it becomes available is not handed what it found there.
	-- Who reads it later has been handed everything, or looks at something old.
	module:hook("iq-set/self/urn:xmpp:mam:2:query", function (event)
		local seat = by_session[event.origin];
		if seat and facts.archives() and not seats.can_take(seat) then seat.read = facts.timestamp(); end
	end, 1);

	-- Presence, told by what it changed: the events of mod_presence know only the first one.
	module:wrap_event("presence/bare", function (fire, name, event)
		local session, stanza = event.origin, event.stanza;
		if stanza.attr.to or session.host ~= host or session.type ~= "c2s" then return fire(name, event); end
		local before = session.presence and session.priority or -1;
		local ret = fire(name, event);
		local seat = by_session[session];
		if seat and not seat.over then
			local after = session.presence and session.priority or -1;
			if before < 0 and after >= 0 then
				pass_sleeping(seat);
				close_gate(seat);
			elseif before >= 0 and after < 0 then
				seats.stand_down(seat);
			end
		end
		return ret;
	end);

	module:hook("resource-bind", function (event) new_seat(event.session); end, 1000);

	module:hook("smacks-hibernation-start", function (event)
		local seat = by_session[event.origin];
		if not seat then return; end
		for i = seat.waiting.first, seat.waiting.last do
			tell_of_waiting(seat, seat.waiting[i].stanza);
		end
		if not unanswered[seat] then return; end -- what it has completely, stays with it
		local user = bare_sessions[seat.bare];
		for _, session in pairs(user and user.sessions or {}) do
			local other = by_session[session];
			if other and not session.hibernating and seats.can_take(other) then
				park(seat);
				return seats.stored(seat.bare);
			end
		end
	end, -1);

	module:hook("smacks-hibernation-end", function (event)
		local session = event.resumed;
		local seat = session and by_session[session];
		if not seat then return; end
		watch(session); -- the session has the filters of the new connection now
		process_acks(seat);
		if seats.can_take(seat) then
			pass_sleeping(seat);
			close_gate(seat);
		end
	end, -1000);

	-- What is written by now goes out before the stream's end, so the client gets it. It is given
	-- to the socket here, for nothing tells of it once the connection closes.
	module:hook("pre-session-close", function (event)
		local seat = by_session[event.session];
		if not seat then return; end
		seat.closing = true;
		if not seat.wire:empty() then facts.flush(event.session.conn); end
	end);

	module:hook("delivery/failure", failed, 10);

	module:hook("resource-unbind", function (event)
		local seat = by_session[event.session];
		if not seat then return; end
		by_session[event.session] = nil;
		seat.over, seat.closing = true, true;
		for entry in function () return seat.track:pop(); end do
			if entry.copy then entry.copy.copies = entry.copy.copies - 1; end
		end
		for entry in function () return seat.wire:pop(); end do
			if entry.whole then seats.lost(seat, entry.whole, entry.copy, entry.stamp); end
		end
		seats.stand_down(seat);
		ctx.retrieve.session_ended(seat);
		-- Nobody fetches any more: the others get what is there.
		if seat.fetches and not fetched_by_one(seat.bare) then seats.stored(seat.bare); end
		forget_seat(seat);
	end, 100);

	local function after_ack(fire, name, event)
		local ret = fire(name, event);
		local seat = by_session[event.origin];
		if seat then process_acks(seat); end
		return ret;
	end
	module:wrap_event("stanza/urn:xmpp:sm:3:a", after_ack);
	module:wrap_event("stanza/urn:xmpp:sm:2:a", after_ack);

	module:hook("c2s-ondrain", function (event)
		local seat = by_session[event.session];
		if seat then process_drain(seat); end
	end, -1000);

	-- -------------------------------------------------------------------- links and time

	-- It takes no more by the link whose node knows it. That one is told so, if it is there still;
	-- what it has sent, and what has not been confirmed, comes by the new one. So what is announced
	-- there is a new reason, by which the word of the old link is known as old.
	local function leave_link(seat)
		local before = links.of_stream(seat.told);
		if before and (unanswered[seat] or next(seat.batches) or has_unacknowledged(seat)) then
			links.emit(before, ("<taken xmlns='urn:amphora:intercept:1' for='%s' session='%s' batch='0' ids='' ended='true'/>")
				:format(escape(seat.bare), escape(seat.id)));
		end
		if unanswered[seat] and seat.told then seat.n = seat.n + 1; end
		seat.told = nil;
		if seat.ended and not seat.ended.ids[1] then
			seat.ended = nil;
			forget_seat(seat);
		end
	end

	-- Not after a reload that changed no link: then the node is told again what it may know.
	local function begin_anew(seat)
		local link = links.of(seat.bare);
		if not link or seat.told ~= link.session then leave_link(seat); end
		seat.in_line = nil;
		if not unanswered[seat] then return; end
		count_no_more(seat);
		seat.answered, seat.announced = nil, nil;
		if link then
			seat.answer_at = time_now();
			want_announcement(seat);
		end
	end

	local function report_again(seat)
		if seat.ended then report_end(seat); end
		for _, batch in pairs(seat.batches) do
			if batch.at then report_batch(seat, batch); end
		end
	end

	-- Users for whom moved(bare) is true belong to another link now, or to none.
	function seats.moved(moved)
		local list = {};
		for _, seat in pairs(by_id) do
			if moved(seat.bare) then list[#list + 1] = seat; end
		end
		for _, seat in ipairs(list) do begin_anew(seat); end
		for _, seat in ipairs(list) do
			if reporting[seat] and links.up then report_again(seat); end
		end
	end

	local function limit_reached(seat, now)
		if seat.gate ~= "closed" then return false; end
		if not links.up then return now - links.lost_at >= options.gate_limit; end
		return seat.in_flight == 0 and now - seat.answer_at >= options.gate_limit;
	end

	function seats.sweep(now)
		for seat in pairs(unanswered) do
			if seat.in_flight > 0 then seat.answer_at = now; end
			if limit_reached(seat, now) then
				module:log("warn", "%s: no hand-over within %g s, live messages go on", seat.jid, options.gate_limit);
				seat.limited = true;
				release(seat);
			end
			if links.up and seat.announced == seat.n and now - seat.announced_at >= options.repeat_after
			and seats.can_take(seat) then
				announce(seat);
			end
		end
		for seat in pairs(unacknowledged) do
			if seat.over or seat.in_flight == 0 then
				unacknowledged[seat] = nil;
			elseif now - seat.asked_at >= options.repeat_after then
				request_ack(seat, true); -- a client may have missed it; nothing goes on without
			end
		end
		for seat in pairs(reporting) do
			local any = false;
			if seat.ended then
				any = true;
				if links.up and now - seat.ended.at >= options.repeat_after then report_end(seat); end
			end
			for _, batch in pairs(seat.batches) do
				if batch.at then
					any = true;
					if links.up and now - batch.at >= options.repeat_after then report_batch(seat, batch); end
				end
			end
			if not any then
				reporting[seat] = nil;
				forget_seat(seat);
			end
		end
	end

	-- -------------------------------------------------------------------- load, reload, unload

	-- Sessions that were there before the module, or before it was loaded again.
	function seats.adopt(saved)
		if saved then
			saved.adopted = true;
			next_entry = saved.next_entry;
			for id, seat in pairs(saved.by_id) do
				by_id[id], reporting[seat] = seat, true;
				if saved.unanswered[seat] then unanswered[seat] = true; end
				-- The order of what is undecided begins anew, with all of it before this.
				seat.barrier, seat.done_seq = ctx.queue.seq(), ctx.queue.seq();
				seat.counted, seat.in_line, seat.answered, seat.announced = nil, nil, nil, nil;
				if not seat.over then
					by_session[seat.session] = seat;
					watch(seat.session);
				end
				if seat.in_flight > 0 then unacknowledged[seat], seat.asked_at = true, time_now(); end
			end
			renewals = saved.renewals;
		end
		for _, user in pairs(prosody.hosts[host].sessions) do
			for _, session in pairs(user.sessions) do
				if not by_session[session] then
					local seat = new_seat(session);
					seat.limited = true; -- nothing of its gate was ever promised
					if session.mam_requested then seat.read = facts.timestamp(); end
					if seats.can_take(seat) then close_gate(seat); end
				end
			end
		end
	end

	-- Once it is known which links outlived a reload: those of the others are as after a loss.
	function seats.find_links()
		seats.moved(function (bare) return not links.of(bare); end);
	end

	-- For a reload. The seats go on as they are: gates, batches, and what the node was not told yet.
	local saved;
	function seats.save()
		saved = { by_id = by_id, unanswered = unanswered, renewals = renewals, next_entry = next_entry };
		return saved;
	end

	-- What waits goes to its session, unless the module that is loaded next has taken it over.
	function seats.unload()
		for session in pairs(by_session) do
			filters.remove_filter(session, "stanzas/out", outgoing);
		end
		local function let_go()
			if saved and saved.adopted then return; end
			for session, seat in pairs(by_session) do
				for _, list in ipairs({ seat.out, seat.waiting }) do
					for entry in function () return list:pop(); end do
						if not entry.item and not entry.reply then session.send(entry.stanza); end
					end
				end
			end
		end
		if saved then add_task(0, let_go); else let_go(); end
	end

	return seats;
end
