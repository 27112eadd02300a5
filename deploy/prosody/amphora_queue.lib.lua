-- The messages that are held: per pair of sender and recipient in order, per user in the spool.
-- Intercepts go out from here and verdicts are carried out here.
--
-- A held message ("held" below) is a table that lives from its interception until it is
-- delivered, stored or discarded:
--   key, user, pair, from, addressed   who; addressed is the `to` it came with
--   stage                              rules, offline, undelivered; routing while it is re-fired
--   stamp, xml, bytes, stanza          what; stanza only where it may have to be routed again
--   ord                                place in the pair's order, for ever
--   gen                                the link it was last sent on, nil if not at this stage yet
--   again, ever_sent                   may have been sent before; was sent at all
--   verdict                            an answer that waits for those before it
--   queued, blocked, paused, waiting   why it is not on its way; queued: for that link; waiting: behind one at rules
--   spooled                            handle of the spool, where it is until it is resolved
--   loaded                             it comes from there: it was in memory before a restart, or has left it
--   plain                              it carries no rules, whatever they say
--   settle                             somebody is told when it is resolved: amphora_broadcast.lib.lua
--
-- A message without rules that waits behind others of its pair is no such table: it is in
-- amphora_turns.lib.lua.

local st = require "util.stanza";
local jid_node = require "util.jid".node;
local time_now = require "util.time".now;
local xpcall = require "util.xpcall".xpcall;
local t_concat, t_sort = table.concat, table.sort;

local host = module.host;
local host_session = prosody.hosts[host];
local bare_sessions, full_sessions = prosody.bare_sessions, prosody.full_sessions;

local RETRY_FIRST, RETRY_LAST = 0.25, 30; -- seconds a pair pauses after retry: doubled each time
local RESTORED = 100; -- messages without rules that leave the spool in one turn of the event loop

return function (ctx)
	local facts, links, options, window = ctx.facts, ctx.links, ctx.options, ctx.window;
	local escape, new_key, unanswer = facts.escape, ctx.new_key, window.answered;
	local queue = {};

	local users = {};   -- bare JID -> user
	local keys = {};    -- key -> held, those in memory
	local held_count, held_bytes = 0, 0;
	local next_seq = 0;
	local paused = {};  -- pair -> true
	local routing;      -- what is being routed right now, see below

	local new_fifo = ctx.new_fifo;
	-- For each link: what is to go out, and the users with a spool.
	local urgent, normal, draining = {}, {}, {};
	for _, link in ipairs(links.all) do
		urgent[link], normal[link], draining[link] = new_fifo(), new_fifo(), new_fifo();
	end

	local needs = {}; -- of the queue, by those who wait behind it
	local turns = module:require "amphora_turns"(ctx, needs);
	local run_free = turns.run_free;

	-- -------------------------------------------------------------------- users and pairs

	local function user_of(bare)
		local user = users[bare];
		if not user then
			user = { bare = bare, username = bare:sub(1, -#host - 2), pairs = {} };
			users[bare] = user;
		end
		return user;
	end

	local function release_user(user)
		if next(user.pairs) == nil and not user.removal and not user.draining and users[user.bare] == user then
			users[user.bare] = nil;
		end
	end

	local function pair_of(user, from)
		local pair = user.pairs[from];
		if not pair then
			-- line: those that wait for their turn, in order, wherever they are listed
			pair = { user = user, from = from, tries = 0, followers = 0, line = new_fifo() };
			user.pairs[from] = pair;
		end
		return pair;
	end

	-- A refusal is outside the pair's order: who must not know what the recipient does must not
	-- notice either when the pair pauses.
	local function is_outside(held) return held.stage == "rules" and not held.may_see; end

	-- Puts a message into its pair, by ord. Almost always that is the end.
	local function insert(held)
		local pair = pair_of(held.user, held.from);
		local prev = pair.tail;
		while prev and prev.ord > held.ord do prev = prev.prev; end
		local after = prev and prev.next;
		if not prev then after = pair.head; end
		held.pair, held.prev, held.next = pair, prev, after;
		if prev then prev.next = held; else pair.head = held; end
		if after then after.prev = held; else pair.tail = held; end
		if held.stage == "rules" and (not pair.first_rules or held.ord < pair.first_rules.ord) then
			pair.first_rules = held;
		end
		if pair.resume_at and not is_outside(held) then
			while prev and is_outside(prev) and not prev.paused do prev = prev.prev; end
			held.paused = prev and prev.paused;
		end
		keys[held.key] = held;
		held_count, held_bytes = held_count + 1, held_bytes + held.bytes;
		return pair;
	end

	-- The list of what was sent to the user's storage and is undecided, in the order of arrival
	-- there: a session is announced when all before its coming is settled.
	local function enter_storage_list(held)
		local user = held.user;
		next_seq = next_seq + 1;
		held.seq = next_seq;
		held.storage_prev = user.storage_tail;
		if user.storage_tail then user.storage_tail.storage_next = held; else user.storage_head = held; end
		user.storage_tail = held;
	end

	-- What the spool held comes before anything that has a number: it was not settled for anybody
	-- while it was there, and is not because it was loaded.
	local function enter_storage_list_first(held)
		local user = held.user;
		held.seq = 0;
		held.storage_next = user.storage_head;
		if user.storage_head then user.storage_head.storage_prev = held; else user.storage_tail = held; end
		user.storage_head = held;
	end

	local function leave_storage_list(held)
		if not held.seq then return; end
		local user, before, after = held.user, held.storage_prev, held.storage_next;
		if before then before.storage_next = after; else user.storage_head = after; end
		if after then after.storage_prev = before; else user.storage_tail = before; end
		held.seq, held.storage_prev, held.storage_next = nil, nil, nil;
	end

	-- Is all decided that was there at seq? What is in the spool, or came out of it, counts as there.
	function queue.settled(bare, seq)
		local user = users[bare];
		if user then
			if user.removal then return false; end
			if user.storage_head and user.storage_head.seq <= seq then return false; end
		end
		return not ctx.spool:pending(bare);
	end

	function queue.seq() return next_seq; end

	local enqueue, advance;

	-- The one at rules that was first has moved on: who waited behind it goes on too.
	local function pass_rules(held)
		local pair = held.pair;
		if pair.first_rules ~= held then return; end
		local at = held.next;
		pair.first_rules = nil;
		while at do
			local after = at.next;
			if at.stage == "rules" then
				pair.first_rules = at;
				return;
			elseif at.waiting then
				at.waiting = nil;
				queue.admit(at);
			end
			at = after;
		end
	end

	-- Takes a message out of its pair. What it was decided to be is the caller's.
	local function leave(held)
		local pair, prev = held.pair, held.prev;
		pass_rules(held);
		local after = held.next; -- only now, for those behind may have moved to the spool
		unanswer(held);
		leave_storage_list(held);
		if prev then prev.next = after; else pair.head = after; end
		if after then after.prev = prev; else pair.tail = prev; end
		keys[held.key] = nil;
		held_count, held_bytes = held_count - 1, held_bytes - held.bytes;
		held.gone = true;
		turns.inherit(held);
		if after and after.blocked then
			after.blocked = nil;
			enqueue(after);
		end
	end

	local function end_pair(pair)
		if not pair.head and not pair.free then
			paused[pair] = nil;
			if pair.user.pairs[pair.from] == pair then
				pair.user.pairs[pair.from] = nil;
			end
			release_user(pair.user);
		end
	end

	-- -------------------------------------------------------------------- routing again

	-- While a message is routed, everything that is written for it to a session can be told by
	-- this: whose copies they are, and under which key it comes back if it is not acknowledged.
	local function under(context, stanza, what, ...)
		local before = routing;
		context.from, context.id, context.copies = stanza.attr.from, stanza.attr.id, 0;
		routing = context;
		local ok, err = xpcall(what, debug.traceback, ...);
		routing = before;
		if not ok then module:log("error", "While a held message was routed: %s", err); end
	end

	function queue.around_message(fire, event_name, event)
		if event.amphora then return fire(event_name, event); end
		local stanza = event.stanza;
		local before = routing;
		routing = { from = stanza.attr.from, id = stanza.attr.id, copies = 0 };
		local ret = fire(event_name, event);
		routing = before;
		return ret;
	end

	function queue.routing() return routing; end

	-- What the server answers to a message that goes on in silence, is answered to this.
	local nobody = setmetatable({ send = function () return true; end }, { __index = host_session });

	-- Goes on with a message as if it had not been held. Answers of other modules go to its origin:
	-- to the sender's session while it is there.
	local function fire_message(stanza, context, silent)
		local name = stanza.attr.to:find("/", 1, true) and "message/full" or "message/bare";
		local origin = silent and nobody or full_sessions[stanza.attr.from] or host_session;
		under(context or {}, stanza, host_session.events.fire_event, name,
			{ origin = origin, stanza = stanza, amphora = true, silent = silent });
	end

	local function send_out(stanza)
		local ok, err = xpcall(module.send, debug.traceback, module, stanza);
		if not ok then module:log("error", "A stanza could not be routed: %s", err); end
	end
	queue.send_out = send_out;

	function queue.bounce(stanza, type, condition, text)
		if stanza.attr.type == "error" then return; end
		local reply = st.error_reply(stanza, type, condition, text);
		-- the code that XEP-0079 section 6 gives it
		if condition == "service-unavailable" then reply:get_child("error").attr.code = "503"; end
		send_out(reply);
	end

	-- Where rules are not for everybody, an error that depends on where the recipient is would
	-- tell the sender of a message with rules what he may not know.
	function queue.is_silent(username, stanza)
		return links.strict() and facts.has_rules(stanza)
			and not facts.may_see_presence(username, stanza.attr.from);
	end

	local function bounce_stored(user, stanza, ...)
		if not queue.is_silent(user.username, stanza) then queue.bounce(stanza, ...); end
		release_user(user);
	end

	-- It can't be kept; whoever asked for it is told so.
	local function settle_lost(held)
		release_user(held.user);
		ctx.broadcasts.settled(held.key, "discarded");
	end

	local function stanza_of(held)
		if held.stanza then return held.stanza; end
		local stanza, err = facts.parse(held.xml);
		if not stanza then module:log("error", "Held message %s can't be read: %s", held.key, err); end
		return stanza;
	end

	-- -------------------------------------------------------------------- the spool

	-- Without a node for so long, or with the server about to end, nothing is kept in memory.
	local function straight_to_spool()
		return queue.stopping or (not links.up and time_now() - links.lost_at >= options.hold);
	end

	local function memory_short()
		return held_count + turns.count >= options.held_messages
			or held_bytes + turns.bytes >= options.held_bytes;
	end

	local spooled_count, bounced_count = 0, 0;

	-- Moves a message of a pair to the spool. False if it can't be written: then it stays.
	local function to_spool(held)
		local bare = held.user.bare;
		held.spooled = held.spooled or ctx.spool:append(bare, held);
		if not held.spooled then return false; end
		ctx.spool:release(bare, held.spooled);
		spooled_count = spooled_count + 1;
		leave(held);
		queue.drain(bare);
		return true;
	end

	function queue.drain(bare)
		local link = links.of(bare);
		if not link or not ctx.spool:pending(bare) then return; end
		local user = user_of(bare);
		if not user.draining then
			user.draining = link;
			draining[link]:push(user);
		end
	end

	-- The next user whose spool goes to that link.
	local function next_draining(link)
		local user;
		repeat user = draining[link]:pop(); until not user or user.draining == link;
		return user;
	end

	local restored = 0; -- of those that wait for their turn, in a row

	-- The spool's next message of a user whose turn it is, back in its pair.
	local function load_next(link)
		while true do
			local user = next_draining(link);
			if not user then return nil; end
			user.draining = nil;
			local record, handle = ctx.spool:load(user.bare);
			while record and keys[record.key] do -- the spool was left with two stages of it
				ctx.spool:delete(user.bare, handle);
				record, handle = ctx.spool:load(user.bare);
			end
			if record and record.stage == "turn" then
				queue.drain(user.bare);
				turns.restore(user, record, handle);
				restored = restored + 1;
				if restored >= RESTORED or memory_short() then
					restored = 0;
					ctx.schedule();
					return nil;
				end
			elseif record then
				local held = {
					key = record.key, user = user, from = record.from, addressed = record.addressed;
					stage = record.stage, stamp = record.stamp, archived = record.archived, xml = record.xml, bytes = #record.xml;
					ord = record.ord, again = true, ever_sent = true, loaded = true, spooled = handle;
					settle = record.stage ~= "rules" and ctx.broadcasts.is_key(record.key) or nil;
					may_see = record.stage == "rules" and facts.may_see_presence(user.username, record.from) or nil;
				};
				queue.drain(user.bare);
				local pair = insert(held);
				if held.stage ~= "rules" then
					enter_storage_list_first(held);
					if pair.first_rules and pair.first_rules.ord < held.ord then held.waiting = true; end
				end
				if not held.waiting then return held; end
			else
				release_user(user);
				ctx.seats.check_user(user.bare);
			end
		end
	end

	local function bounce_rules(held)
		if held.settle then
			leave(held);
			return ctx.broadcasts.dropped(held.key);
		end
		local stanza = stanza_of(held);
		bounced_count = bounced_count + 1;
		leave(held);
		if held.spooled then ctx.spool:delete(held.user.bare, held.spooled); end
		if stanza then queue.bounce(stanza, "cancel", "service-unavailable"); end
	end

	-- In the pair's order: who waits behind a message goes on when it is gone, before the next one.
	-- False if the spool can't be written.
	local function spool_pair(pair)
		local at = pair.head;
		while at do
			if at.stage == "routing" then
				at = at.next; -- its own re-firing will see to it
			else
				if at.stage == "rules" and (at.settle or not at.ever_sent) then
					bounce_rules(at);
				elseif not to_spool(at) then
					return false;
				end
				run_free(pair);
				at = pair.head;
			end
		end
		run_free(pair);
		end_pair(pair);
		return true;
	end

	-- Everything that is held goes to the spool, or back if it is a message with rules that no
	-- node ever saw. What waited only for order goes on.
	local spooling;
	function queue.spool_all(why)
		if held_count == 0 or spooling then return; end
		spooling = true;
		spooled_count, bounced_count = 0, 0;
		local list = {};
		for _, user in pairs(users) do
			for _, pair in pairs(user.pairs) do list[#list + 1] = pair; end
		end
		local ok, err = xpcall(function ()
			for _, pair in ipairs(list) do
				if not spool_pair(pair) then break; end
			end
		end, debug.traceback);
		spooling = nil;
		if not ok then module:log("error", "While held messages went to the spool: %s", err); end
		if spooled_count + bounced_count > 0 then
			module:log("info", "%s: %d held messages went to the spool, %d with rules back to their senders; "
				.."%d messages are in the spool", why, spooled_count, bounced_count, ctx.spool.live);
		end
		if queue.stopping and held_count > 0 then
			module:log("error", "%s: %d held messages could not be written to the spool", why, held_count);
		end
	end

	local function spool_full()
		return ctx.spool.size >= options.spool_limit;
	end

	-- Without a node and with too much in memory, the spool takes all of it, so that what comes
	-- next finds room.
	local function make_room()
		if not links.up and memory_short() and not spool_full() and not ctx.spool.failing then
			queue.spool_all("Memory is short");
		end
	end

	-- -------------------------------------------------------------------- interception

	local function new_ord()
		ctx.spool.max_ord = ctx.spool.max_ord + 1;
		return ctx.spool.max_ord;
	end

	-- The place of a message that comes back: it is older than what waits in its pair, at rules or for
	-- its turn, and must not come after that.
	local function ord_of_older(pair)
		local rules, follower = pair.first_rules, pair.line:peek();
		local first = rules or follower;
		if not first then return new_ord(); end
		local limit = follower and math.min(first.ord, follower.ord) or first.ord;
		local prev = pair.tail;
		while prev and prev.ord >= limit do prev = prev.prev; end
		return prev and prev.ord or limit - 0.5;
	end

	local function too_large(stanza, bytes) return facts.too_large(stanza, bytes, ctx.max_stanza); end

	-- In the spool before the server goes on, and so before its sender hears that it was accepted: then
	-- the server may be killed. Where that can't be, for the disk or the spool is full, it is in memory
	-- alone, as if it had come a moment later.
	local function record(held)
		local bare = held.user.bare;
		if held.spooled then
			ctx.spool:replace(bare, held.spooled, held);
			if routing and routing.spooled == held.spooled then routing.spooled = nil; end
		elseif not spool_full() then
			held.spooled = ctx.spool:append(bare, held);
		end
	end

	-- A message that waits at its stage goes to the link, or behind what the spool has for the user.
	-- It stays in memory before others of its pair that are there.
	function queue.admit(held)
		if held.paused or held.waiting then return; end
		if held.stage ~= "rules" and not held.loaded
		and (ctx.spool:pending(held.user.bare, held.ord)
			or (not held.next and (straight_to_spool() or memory_short()))) then
			local pair = held.pair;
			if to_spool(held) then
				run_free(pair);
				end_pair(pair);
				return;
			end
		end
		enqueue(held);
	end

	-- A message with rules: held before anything else of the server sees it.
	function queue.intercept_rules(bare, stanza, from)
		make_room();
		stanza = st.clone(stanza);
		stanza.attr.to = stanza.attr.to or bare;
		local user = user_of(bare);
		local key = new_key();
		facts.identify(stanza, bare, key);
		local xml = facts.serialise(stanza);
		if too_large(stanza, #xml) then
			release_user(user);
			queue.bounce(stanza, "modify", "policy-violation", "The message is too large for its rules to be processed");
			return;
		end
		if straight_to_spool() or memory_short() then
			release_user(user);
			queue.bounce(stanza, "cancel", "service-unavailable");
			return;
		end
		local held = {
			key = key, user = user, from = from, addressed = stanza.attr.to;
			stage = "rules", stamp = facts.timestamp(), xml = xml, bytes = #xml, stanza = stanza;
			ord = new_ord(), may_see = facts.may_see_presence(user.username, from);
			seen_at = time_now(), seen_at_change = links.changes;
		};
		record(held);
		insert(held);
		if held.may_see then
			queue.admit(held);
		else
			-- At once, so that a refusal takes as long whatever the recipient does.
			enqueue(held, true);
		end
	end

	-- A message of the host's own, under a key that came with it (section 5). Nothing of it is in the
	-- spool before archive and push have seen it: whoever asks for it asks again. Nil and an error if
	-- it can't be held.
	function queue.hold_own(bare, stanza, key, again)
		make_room();
		local user = user_of(bare);
		facts.identify(stanza, bare, key);
		local xml = facts.serialise(stanza);
		local large = too_large(stanza, #xml);
		if large or straight_to_spool() or memory_short() then
			release_user(user);
			if large then return nil, "modify", "policy-violation", "The message is too large"; end
			return nil, "wait", "resource-constraint", "The server can hold no more messages now";
		end
		local held = {
			key = key, user = user, from = host, addressed = bare, settle = true, again = again;
			stage = "rules", stamp = facts.timestamp(), xml = xml, bytes = #xml, stanza = stanza;
			ord = new_ord(), may_see = true;
		};
		insert(held);
		queue.admit(held);
		return true;
	end

	-- Is the message of that key held, in memory or, if it may have come there, in the spool?
	function queue.holds(bare, key, again)
		return keys[key] ~= nil or (again and ctx.spool:pending(bare) and ctx.spool:keys(bare)[key]) or false;
	end

	-- Whatever would go to offline storage. True if it is taken care of.
	function queue.intercept_offline(event, username)
		local stanza = event.stanza;
		username = username or jid_node(stanza.attr.to) or event.origin.username;
		local bare = username.."@"..host;
		local from = stanza.attr.from or "";
		local own = routing and stanza.attr.from == routing.from and stanza.attr.id == routing.id;
		if own and routing.held and routing.held.user.username == username then
			return queue.from_rules_to_offline(routing.held, stanza);
		end
		local key = new_key();
		local xml, archived = facts.seal(stanza, bare, key);
		queue.hold_for_storage(bare, {
			key = key, from = from, addressed = stanza.attr.to or bare, ord = own and routing.ord or nil;
			stage = "offline", stamp = facts.timestamp(), archived = archived, xml = xml;
			plain = not facts.mentions_rules(stanza), spooled = own and routing.spooled or nil;
		}, stanza);
		return true;
	end

	-- False if it can't be held, and its sender was told, if he may know.
	function queue.hold_for_storage(bare, held, stanza)
		make_room();
		held.bytes = #held.xml;
		held.user = user_of(bare);
		if too_large(stanza, held.bytes) then
			if held.settle then return settle_lost(held); end
			bounce_stored(held.user, stanza, "modify", "policy-violation", "The message is too large to be stored");
			return false;
		elseif (spool_full() and (memory_short() or straight_to_spool())) or (ctx.spool.failing and memory_short()) then
			if held.settle then return settle_lost(held); end
			bounce_stored(held.user, stanza, "wait", "resource-constraint", "The server can keep no more messages");
			return false;
		end
		local pair = pair_of(held.user, held.from);
		local first_rules = pair.first_rules;
		if held.ord then -- luacheck: ignore 542
			-- it waited for its turn in this pair, and keeps it
		elseif held.stage == "undelivered" then
			held.ord = ord_of_older(pair);
		else
			held.ord = new_ord();
		end
		record(held);
		insert(held);
		if held.loaded then enter_storage_list_first(held); else enter_storage_list(held); end
		held.waiting = first_rules ~= nil and first_rules.ord < held.ord or nil;
		queue.admit(held);
		return true;
	end

	-- The server was told to go on with a message, and found nobody: the second stage.
	function queue.from_rules_to_offline(held, stanza)
		local bytes, bare = held.bytes, held.user.bare;
		held.xml, held.archived = facts.seal(stanza, bare, held.key, true);
		held.bytes = #held.xml;
		held_bytes = held_bytes + held.bytes - bytes;
		held.stage, held.stanza = "offline", nil;
		-- The archive has it only now: who read it since the stamp has not seen this one.
		if held.archived and ctx.seats.read_between(bare, held.stamp, facts.timestamp()) then held.archived = false; end
		held.gen, held.captured = nil, true;
		held.again = held.loaded; -- no node was asked about it at this stage yet
		enter_storage_list(held);
		return true;
	end

	-- A message that a session did not acknowledge, or that waited in its gate. A message that
	-- was intercepted before comes back under its key.
	function queue.undelivered(bare, stanza, copy, stamp, session_jid)
		local from = stanza.attr.from or "";
		local key = copy and copy.key;
		if key and keys[key] then return; end
		local seen = key ~= nil;
		key = key or new_key();
		stamp = copy and copy.stamp or stamp or facts.timestamp();
		local xml, archived = facts.seal(stanza, bare, key, seen);
		-- mod_smacks' stamp is a second wide: who read the archive within it may not have seen this one.
		local second = archived and stamp:match("^(.*:%d%d)Z$");
		if second and ctx.seats.read_between(bare, second..".000Z", second..".999Z") then archived = false; end
		queue.hold_for_storage(bare, {
			key = key, from = from, addressed = session_jid or stanza.attr.to or bare, again = true;
			stage = "undelivered", stamp = stamp, archived = archived, xml = xml;
			settle = ctx.broadcasts.is_key(key) or nil, plain = not facts.mentions_rules(stanza);
		}, stanza);
	end

	-- The pair of a message that need not be intercepted, if something undecided is before it.
	function queue.must_follow(bare, from, stanza)
		make_room();
		local user = users[bare];
		local pair = user and user.pairs[from];
		return pair and turns.must_wait(pair, stanza, bare) and pair;
	end

	function queue.follow(pair, stanza, bare)
		if turns.count + held_count >= options.held_messages * 2
		or turns.bytes + held_bytes >= options.held_bytes * 2 then
			return queue.bounce(stanza, "wait", "resource-constraint");
		end
		turns.wait(pair, stanza, bare);
	end

	-- -------------------------------------------------------------------- sending

	function enqueue(held, is_urgent)
		local link = links.of(held.user.bare);
		if held.queued or held.gone or not link then return; end
		held.queued = link;
		if is_urgent or (held.stage == "rules" and not held.may_see and not held.loaded) then
			urgent[link]:push(held);
		else
			normal[link]:push(held);
		end
		ctx.schedule();
	end

	-- Who would get the message if it were routed now. The decision holds only as long as this. For
	-- one who is sent on, his sessions change nothing.
	local function takers(held)
		local how, target = ctx.forward.target_of(held, stanza_of);
		if how then return how.." "..target; end
		local session = full_sessions[held.addressed];
		if session then
			local seat = ctx.seats.of(session);
			if seat and not seat.closing then return seat.id; end
		end
		local user = bare_sessions[held.user.bare];
		local top = user and user.top_resources;
		if not top then return ""; end
		local ids = {};
		for _, recipient in ipairs(top) do
			local seat = ctx.seats.of(recipient);
			if seat and not seat.closing then ids[#ids + 1] = seat.id; end
		end
		if ids[2] then t_sort(ids); end
		return t_concat(ids, " ");
	end

	-- What comes back from a session that is still there is for that one, and no other.
	local function add_sessions(xml, held)
		local user = bare_sessions[held.user.bare];
		local listed;
		local only = held.stage == "undelivered" and full_sessions[held.addressed];
		if only and not (ctx.seats.of(only) and ctx.seats.can_take(ctx.seats.of(only))) then only = nil; end
		for resource, session in pairs(user and user.sessions or {}) do
			local seat = (not only or session == only) and ctx.seats.of(session);
			-- One without presence gets what is addressed to itself.
			local priority = session.presence and session.priority
				or (held.stage == "rules" and session.full_jid == held.addressed and -128);
			if priority and seat and not seat.closing and (held.stage == "rules" or seat.gate == "open") then
				xml[#xml + 1] = ("<session resource='%s' priority='%d'%s/>"):format(escape(resource), priority,
					session.hibernating and " hibernating='true'" or "");
				if priority >= 0 then
					listed = listed or {};
					listed[#listed + 1] = seat;
				end
			end
		end
		held.listed = listed;
	end

	-- What the link takes in one order per pair: a message goes out after the one before it did,
	-- and not between others, or the shard would send it back.
	local function in_turn(held)
		return held.prev == nil or held.pair.last_sent == held.prev.key;
	end

	-- The server asked before it came to storage; after that it may have become untrue.
	local function account_exists(held)
		if held.stage == "offline" and not held.again then return true; end
		return facts.account_exists(held.user.username);
	end

	local function send(held, link)
		local user, now = held.user, time_now();
		local rules = held.stage == "rules";
		-- A right that was looked up when the message came counts for its first sending soon after. The
		-- host's own messages need none, and nothing of one without rules depends on it.
		if held.settle or (held.plain and not rules) then
			held.may_see = true;
		elseif not (rules and held.seen_at and held.seen_at_change == links.changes and now - held.seen_at < 1) or held.ever_sent then
			held.may_see = facts.may_see_presence(user.username, held.from);
		end
		if rules then held.takers = takers(held); end
		local how, target;
		if rules then how, target = ctx.forward.target_of(held, stanza_of); end
		local after = held.prev and (" after='"..escape(held.prev.key).."'") or "";
		local xml = {
			"<intercept xmlns='urn:amphora:intercept:1' key='"..escape(held.key).."'"..after
				..(held.again and " again='true'" or "").." stage='"..held.stage.."' leg='recipient' to='"
				..escape(user.bare).."' account='"..tostring(account_exists(held))
				.."' may-see-presence='"..tostring(held.may_see).."' archived='"..tostring(held.archived or false).."'"
				..(how and (" "..how.."='"..escape(target).."'") or "")..">";
		};
		add_sessions(xml, held);
		xml[#xml + 1] = "<forwarded xmlns='urn:xmpp:forward:0'><delay xmlns='urn:xmpp:delay' stamp='"..escape(held.stamp).."'/>";
		xml[#xml + 1] = held.xml;
		xml[#xml + 1] = "</forwarded></intercept>";
		window.sent(held, link, send);
		held.pair.last_sent = held.key;
		links.emit_intercept(link, t_concat(xml));
		local after_it = held.next;
		if after_it and after_it.blocked then
			after_it.blocked = nil;
			enqueue(after_it);
		end
	end

	function queue.pump(link)
		while window.open(link) do
			local held = urgent[link]:pop() or normal[link]:pop();
			if not held then
				if draining[link]:empty() or memory_short() then break; end
				held = load_next(link);
				if not held then break; end
				held.queued = link;
			end
			if held.queued == link and not held.gone then
				held.queued = nil;
				if held.waiting or held.paused or held.verdict or held.stage == "routing" then -- luacheck: ignore 542
					-- it comes again when its time has come
				elseif held.user.removal then
					held.parked = true;
				elseif in_turn(held) or (held.stage == "rules" and not held.may_see) then
					send(held, link);
				else
					held.blocked = true;
				end
			end
		end
	end

	-- -------------------------------------------------------------------- verdicts

	-- Not answered, or not to be carried out: asked again, with what is true then.
	local pause_from;
	local function ask_again(held)
		held.voided = (held.voided or 0) + 1;
		if held.voided > 3 then return pause_from(held); end -- something is unsteady
		unanswer(held);
		held.gen, held.verdict = nil, nil;
		enqueue(held);
	end

	local function finish(held, outcome)
		local pair, user = held.pair, held.user;
		leave(held);
		if held.spooled then ctx.spool:delete(user.bare, held.spooled); end
		if held.settle then ctx.broadcasts.settled(held.key, outcome); end
		run_free(pair);
	end

	function queue.route_sends(held, sends)
		for _, send_element in ipairs(sends) do
			local stanza, err = ctx.own_stanza(send_element);
			if stanza then
				send_out(stanza);
			else
				module:log("warn", "Verdict for %s: a send was left out: %s", held.key, err);
			end
		end
	end

	local function deliver_rules(held, silent)
		local stanza = stanza_of(held);
		if not stanza then return finish(held, "discarded"); end
		stanza = st.clone(stanza);
		facts.address_rules(stanza);
		held.stage, held.captured = "routing", nil;
		local context = { key = held.key, stamp = held.stamp, held = held };
		fire_message(stanza, context, silent);
		if not held.captured then
			held.stage = "rules";
			if held.settle and context.copies > 0 and not context.written then
				-- It waits in a gate: from there it goes to the session, or comes back as undelivered.
				held.settle, context.gated = nil, true;
				ctx.broadcasts.gated(held.key);
			end
			return finish(held, (context.copies > 0 or context.passed) and "delivered" or "discarded");
		end
		-- It stays unresolved, as one at stage offline now.
		unanswer(held);
		record(held);
		-- It goes out first, then those behind that waited for it.
		local pair = held.pair;
		if pair.last_sent == held.key then pair.last_sent = nil; end
		queue.admit(held);
		if not held.gone then pass_rules(held); end
	end

	local function deliver_to_sessions(held)
		local written;
		local stanza;
		for _, seat in ipairs(held.listed or {}) do
			if ctx.seats.can_take(seat) then
				stanza = stanza or stanza_of(held);
				if not stanza then break; end
				if held.stage == "undelivered" or held.loaded then facts.add_delay(stanza, held.stamp); end
				under({ key = held.key, stamp = held.stamp }, stanza, function ()
					if seat.session.send(stanza) then written = true; end
				end);
			end
		end
		return written;
	end

	local function carry_out(held)
		local verdict = held.verdict;
		local what, sends = verdict.what, verdict.sends;
		held.verdict = nil;
		held.pair.tries = 0;
		if what == "deliver" then
			if held.stage == "rules" then
				if takers(held) ~= held.takers then return ask_again(held); end
				deliver_rules(held, verdict.silent);
			else
				if not deliver_to_sessions(held) then return ask_again(held); end
				finish(held, "delivered");
			end
		else
			finish(held, what);
			if what == "stored" then ctx.seats.stored(held.user.bare); end
		end
		queue.route_sends(held, sends);
		if held.gone then ctx.seats.check_user(held.user.bare); end
	end

	-- Carries out what can be carried out, in the pair's order.
	function advance(pair)
		if pair.busy then return; end
		pair.busy = true;
		while true do
			local head, first_rules = pair.head, pair.first_rules;
			if head and head.verdict and head.stage ~= "routing" then
				carry_out(head);
			elseif first_rules and first_rules.verdict and not turns.would_pass(first_rules) then
				carry_out(first_rules);
			else
				break;
			end
		end
		pair.busy = nil;
		run_free(pair);
		end_pair(pair);
	end

	function pause_from(held)
		local pair = held.pair;
		local pause = math.min(RETRY_FIRST * 2 ^ math.min(pair.tries, 20), RETRY_LAST);
		pair.tries = pair.tries + 1;
		pair.resume_at = time_now() + pause;
		paused[pair] = true;
		module:log("debug", "From %s to %s: paused from %s on for %g s", pair.from, pair.user.bare, held.key, pause);
		local at = held;
		while at do
			if at.stage ~= "routing" and (at == held or not is_outside(at)) then
				unanswer(at);
				at.gen, at.verdict, at.paused = nil, nil, true;
			end
			at = at.next;
		end
	end

	local function resume(pair)
		paused[pair], pair.resume_at = nil, nil;
		local at = pair.head;
		while at do
			local after = at.next;
			if at.paused then
				at.paused, at.blocked = nil, nil;
				queue.admit(at);
			end
			at = after;
		end
	end

	local allowed = {
		deliver = { rules = true, offline = true, undelivered = true };
		stored = { offline = true, undelivered = true };
		discarded = { rules = true, offline = true, undelivered = true };
		retry = { rules = true, offline = true, undelivered = true };
	};

	function queue.verdict(element, link)
		local attr = element.attr;
		local held = attr.key and keys[attr.key];
		if not held or held.stage ~= attr.stage or held.gen ~= link.gen or held.verdict then
			module:log("debug", "Verdict for %s at %s counts no more", attr.key, attr.stage);
			return;
		end
		local what = attr["do"];
		if not allowed[what] or not allowed[what][held.stage] then
			module:log("warn", "Verdict %s for %s at %s has no meaning, left out", what, held.key, held.stage);
			return;
		end
		unanswer(held);
		if what == "retry" then
			pause_from(held);
			return advance(held.pair);
		end
		local sends = {};
		for tag in element:childtags("send") do sends[#sends + 1] = tag; end
		held.verdict = { what = what, sends = sends, silent = attr.silent == "true" };
		local pair = held.pair;
		if what == "discarded" and held.stage == "rules" and not held.may_see then
			carry_out(held); -- a refusal is outside the pair's order
		end
		return advance(pair);
	end

	-- -------------------------------------------------------------------- links and time

	-- Nothing of the pair that was sent counts as sent any more, and what was decided as undecided.
	local function unsend(pair)
		pair.last_sent = nil;
		local at = pair.head;
		while at do
			unanswer(at);
			at.gen, at.verdict, at.blocked, at.queued = nil, nil, nil, nil;
			at = at.next;
		end
	end

	-- All of it goes out, in order.
	local function send_anew(pair)
		pair.tries = 0;
		resume(pair);
		local at = pair.head;
		while at do
			local after = at.next;
			if not at.waiting then enqueue(at); end
			at = after;
		end
	end

	-- Users for whom moved(bare) is true belong to another link now, or to none. They go there whole.
	function queue.moved(moved)
		local list = {};
		for bare, user in pairs(users) do
			if moved(bare) then list[#list + 1] = user; end
		end
		for _, user in ipairs(list) do
			user.draining = nil;
			for _, pair in pairs(user.pairs) do unsend(pair); end
		end
		if not links.up then
			for _, user in ipairs(list) do release_user(user); end
			return;
		end
		for bare in pairs(ctx.spool.users) do
			if moved(bare) then queue.drain(bare); end
		end
		for _, user in ipairs(list) do
			for _, pair in pairs(user.pairs) do send_anew(pair); end
			release_user(user);
		end
		ctx.schedule();
	end

	function queue.sweep(now)
		for pair in pairs(paused) do
			if now >= (pair.resume_at or 0) then resume(pair); end
		end
		if straight_to_spool() then
			queue.spool_all(queue.stopping and "The server stops" or "No node");
		end
		turns.sweep(now);
	end

	-- -------------------------------------------------------------------- accounts removed

	-- What is held for the account is dropped; the node is told before anything else about it. The
	-- time goes with it, for what comes later is the next owner's of the name.
	function queue.remove_account(bare)
		local user, stamp = user_of(bare), facts.timestamp();
		local n = ctx.spool:delete_user(bare);
		for _, pair in pairs(user.pairs) do
			local at = pair.head;
			pair.first_rules = nil; -- nobody waits behind it any more
			while at do
				local after = at.next;
				if not at.gone then
					leave(at);
					if at.settle then ctx.broadcasts.settled(at.key, "discarded"); end
					if not at.spooled then n = n + 1; end
				end
				at.spooled = nil;
				at = after;
			end
			turns.drop_free(pair);
			paused[pair] = nil;
		end
		user.pairs = {};
		ctx.spool:add_removal(bare, stamp);
		user.removal = { bare = bare, stamp = stamp };
		module:log("info", "Account %s was removed: %d messages held for it were dropped", bare, n);
		return user.removal;
	end

	function queue.restore_removals()
		for bare, stamp in pairs(ctx.spool.removals) do
			user_of(bare).removal = { bare = bare, stamp = stamp };
		end
	end

	function queue.removals()
		local list = {};
		for bare in pairs(ctx.spool.removals) do
			local user = users[bare];
			if user and user.removal then list[#list + 1] = user.removal; end
		end
		return list;
	end

	function queue.removal_done(bare)
		local user = users[bare];
		ctx.spool:remove_removal(bare);
		if not user then return; end
		user.removal = nil;
		for _, pair in pairs(user.pairs) do
			local at = pair.head;
			while at do
				if at.parked then
					at.parked = nil;
					enqueue(at);
				end
				at = at.next;
			end
		end
		release_user(user);
		ctx.seats.check_user(bare);
	end

	function queue.held() return held_count, held_bytes; end

	needs.fire_message, needs.advance, needs.pair_of, needs.end_pair = fire_message, advance, pair_of, end_pair;
	needs.new_ord, needs.spool_full = new_ord, spool_full;

	return queue;
end
