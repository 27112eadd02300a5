-- Messages without rules that wait for their turn in their pair, behind what is held: "followers".
--
--   stanza, bytes, pair, since, ord    what, whose, since when, and its place in the pair's order
--   spooled                            handle of the spool, where it is if it is for a user who is away
--   done                               it has gone on; lists may still name it
--
-- A follower is listed with the held message before it (held.followers), or in pair.free once nothing
-- is before it. It goes on when its turn comes, as if it had arrived then, and after `hold` in any case.
-- In the spool it has the stage `turn`. If it comes to be held itself, that takes its place there.

local st = require "util.stanza";
local time_now = require "util.time".now;
local t_insert = table.insert;

local bare_sessions, full_sessions = prosody.bare_sessions, prosody.full_sessions;

-- `own`: what these need of the queue.
return function (ctx, own)
	local facts, options = ctx.facts, ctx.options;
	local turns = { count = 0, bytes = 0 };

	local waiting = ctx.new_fifo(); -- all of them, oldest first

	-- -------------------------------------------------------------------- order

	-- Behind what is before it in the pair's order, for what comes out of the spool may be older than
	-- what is there.
	local function enter_line(pair, follower)
		local before = pair.tail;
		local list;
		while before and before.ord > follower.ord do before = before.prev; end
		if before then
			list = before.followers or {};
			before.followers = list;
		else
			list = pair.free or {};
			pair.free = list;
		end
		local at = #list + 1;
		while at > 1 and list[at - 1].ord > follower.ord do at = at - 1; end
		t_insert(list, at, follower);
		local line = pair.line;
		line:push(follower);
		for i = line.last, line.first + 1, -1 do
			if line[i - 1].ord <= line[i].ord then break; end
			line[i - 1], line[i] = line[i], line[i - 1];
		end
		turns.count, turns.bytes = turns.count + 1, turns.bytes + follower.bytes;
		pair.followers = pair.followers + 1;
		waiting:push(follower);
	end

	-- A held message has left its pair: those behind it are behind the one before it now.
	function turns.inherit(held)
		local list = held.followers;
		if not list then return; end
		local prev, pair = held.prev, held.pair;
		local heir;
		if prev then
			heir = prev.followers or {};
			prev.followers = heir;
		else
			heir = pair.free or {};
			pair.free = heir;
		end
		for _, follower in ipairs(list) do heir[#heir + 1] = follower; end
		held.followers = nil;
	end

	-- A message that the server is told to go on with may pass those of its pair that are being
	-- stored, for then the gates are closed. It may not pass one that waits for them openly.
	function turns.would_pass(held)
		if held.pair.followers == 0 then return false; end
		local at = held.prev;
		while at do
			for _, follower in ipairs(at.followers or {}) do
				if not follower.done then return true; end
			end
			at = at.prev;
		end
		return false;
	end

	-- -------------------------------------------------------------------- going on

	local function drop(follower)
		local stanza, pair = follower.stanza, follower.pair;
		follower.done, follower.stanza = true, nil;
		local line = pair.line;
		while not line:empty() and line:peek().done do line:pop(); end
		pair.followers = pair.followers - 1;
		turns.count, turns.bytes = turns.count - 1, turns.bytes - follower.bytes;
		return stanza;
	end

	local function fire(follower, stanza)
		local context = { ord = follower.ord, spooled = follower.spooled };
		own.fire_message(stanza, context);
		if context.spooled then ctx.spool:delete(follower.pair.user.bare, context.spooled); end
	end

	local function go_on(follower) fire(follower, drop(follower)); end

	function turns.run_free(pair)
		while pair.free do
			local free = pair.free;
			pair.free = nil;
			for _, follower in ipairs(free) do
				if not follower.done then go_on(follower); end
			end
		end
	end

	-- The account is removed.
	function turns.drop_free(pair)
		for _, follower in ipairs(pair.free or {}) do
			if not follower.done then drop(follower); end
		end
		pair.free = nil;
	end

	function turns.sweep(now)
		while true do
			local follower = waiting:peek();
			if not follower then break; end
			if not follower.done then
				if now - follower.since < options.hold then break; end
				go_on(follower);
				own.advance(follower.pair);
			end
			waiting:pop();
		end
	end

	-- -------------------------------------------------------------------- coming

	-- Will the server find nobody for it, so that it comes to be stored, behind what its pair has?
	local function is_for_storage(stanza, bare)
		local kind = stanza.attr.type;
		if kind and kind ~= "chat" and kind ~= "normal" or ctx.forward.any() then return false; end
		local user = bare_sessions[bare];
		return not (user and user.top_resources) and not full_sessions[stanza.attr.to];
	end

	-- Must it wait for something undecided of its pair? Not where it will come to be held itself, and
	-- nothing that need not be is before it.
	function turns.must_wait(pair, stanza, bare)
		if not pair.tail and not pair.free then return false; end
		return pair.first_rules ~= nil or pair.free ~= nil or pair.followers > 0 or not is_for_storage(stanza, bare);
	end

	function turns.wait(pair, stanza, bare)
		stanza = st.clone(stanza);
		stanza.attr.to = stanza.attr.to or bare;
		local follower = {
			stanza = stanza, bytes = #tostring(stanza), pair = pair, since = time_now(), ord = own.new_ord();
		};
		if is_for_storage(stanza, bare) and not own.spool_full() then
			follower.spooled = ctx.spool:append(bare, {
				key = ctx.new_key(), stage = "turn", ord = follower.ord, stamp = facts.timestamp();
				from = pair.from, addressed = stanza.attr.to, xml = facts.serialise(stanza);
			});
		end
		enter_line(pair, follower);
	end

	-- One that waited when the server died, out of the spool. If somebody is there for it by now and
	-- nothing with rules is before it, it must not come behind what has come since: it is stored, and
	-- handed over before that.
	function turns.restore(user, record, handle)
		local bare = user.bare;
		local stanza, err = facts.parse(record.xml);
		if not stanza then
			module:log("error", "Held message %s can't be read: %s", record.key, err);
			return ctx.spool:delete(bare, handle);
		end
		local pair = own.pair_of(user, record.from);
		local behind_rules = pair.first_rules and pair.first_rules.ord < record.ord;
		if not behind_rules and not is_for_storage(stanza, bare) then
			local xml, archived = facts.seal(stanza, bare, record.key);
			local kept = ctx.queue.hold_for_storage(bare, {
				key = record.key, from = record.from, addressed = record.addressed, ord = record.ord;
				stage = "offline", stamp = record.stamp, archived = archived, xml = xml;
				again = true, loaded = true, spooled = handle;
			}, stanza);
			if not kept then
				ctx.spool:delete(bare, handle);
				own.end_pair(pair);
			end
			return;
		end
		local follower = {
			stanza = stanza, bytes = #record.xml, pair = pair, since = time_now(), ord = record.ord, spooled = handle;
		};
		if pair.tail and pair.head.ord < follower.ord then
			enter_line(pair, follower);
		else
			fire(follower, stanza);
			own.end_pair(pair);
		end
	end

	return turns;
end
