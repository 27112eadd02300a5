-- The links: which nodes of Amphora are there, which of them a user belongs to, and what goes to them.
--
-- There is a table ("link" below) for each component that the option names, for ever:
--   component          its domain
--   up, session        a node has greeted on that stream, and the stream is still there
--   gen                numbers the greetings of all links: what was sent under another counts no more
--   node, security, window, actions, conditions   what the greeting said
--   in_window          what amphora_window.lib.lua counts
--   out, out_bytes     elements that are not written yet
--   prompt, prompt_at  it waits for nothing, for somebody logs in; when that was last so
--
-- A user belongs to one of the links that are there: to that for which a hash over his address and the
-- component is highest ("Several links" in docs/intercept.md). So when a link goes, its users go to
-- others and nobody else moves, and when it comes, only its users come back.

local sha256 = require "util.hashes".sha256;
local time_now = require "util.time".now;

local host = module.host;
local hosts = prosody.hosts;

local BATCH_BYTES = 64 * 1024; -- of elements for the node in one message
local PROMPT = 0.25; -- seconds after the last element of a log-in
local KNOWN = 20000; -- users whose link is remembered; then all are looked up anew

return function (ctx, components)
	local facts = ctx.facts;
	local links = { all = {}, up = false, changes = 0, lost_at = time_now() };

	local by_component = {};
	for _, component in ipairs(components) do
		local link = { component = component, up = false, gen = 0, out = {}, out_bytes = 0 };
		links.all[#links.all + 1], by_component[component] = link, link;
	end

	local live = {};  -- the links that are there, in the order of the option
	local known, known_count = {}, 0; -- bare JID -> link, while nothing changes
	local last_gen = 0;
	local was_strict = true;

	-- -------------------------------------------------------------------- whose is whose

	-- A number that every interceptor finds alike: the first four bytes of the hash, big end first.
	function links.weight(bare, component)
		local a, b, c, d = sha256(bare.."\0"..component):byte(1, 4);
		return ((a * 256 + b) * 256 + c) * 256 + d;
	end

	local function choose(bare, list)
		local best, most = list[1], nil;
		if not list[2] then return best; end
		for _, link in ipairs(list) do
			local weight = links.weight(bare, link.component);
			if not most or weight > most or (weight == most and link.component > best.component) then
				best, most = link, weight;
			end
		end
		return best;
	end

	-- The link that a user belongs to now; nil if none is there.
	function links.of(bare)
		if not live[2] then return live[1]; end
		local link = known[bare];
		if not link then
			if known_count >= KNOWN then known, known_count = {}, 0; end
			link = choose(bare, live);
			known[bare], known_count = link, known_count + 1;
		end
		return link;
	end

	function links.live() return live; end

	-- Those of a component, or of the stream of one that is there.
	function links.of_component(component) return by_component[component]; end
	function links.of_stream(stream)
		for _, link in ipairs(live) do
			if link.session == stream then return link; end
		end
	end

	-- -------------------------------------------------------------------- coming and going

	local function list_live()
		live, known, known_count = {}, {}, 0;
		for _, link in ipairs(links.all) do
			if link.up then live[#live + 1] = link; end
		end
		links.up = live[1] ~= nil;
		links.changes = links.changes + 1;
		if links.up then was_strict = links.strict(); end
	end

	-- They are there. Returns a function that tells who belongs to one of them.
	function links.came(list)
		local new = {};
		for _, link in ipairs(list) do
			last_gen = last_gen + 1;
			link.up, link.gen, link.prompt = true, last_gen, false;
			new[link] = true;
		end
		list_live();
		return function (bare) return new[links.of(bare)] ~= nil; end
	end

	-- It is there no more. Returns a function that tells who belonged to it.
	function links.gone(link)
		local before = live;
		link.up, link.session = false, nil;
		link.out, link.out_bytes = {}, 0;
		list_live();
		if not links.up then links.lost_at = time_now(); end
		return function (bare) return choose(bare, before) == link; end
	end

	-- The stream of a component that is connected.
	function links.stream(component)
		local component_host = hosts[component];
		local env = component_host and component_host.modules and component_host.modules.component;
		return env and env.connected and env.session or nil;
	end

	-- -------------------------------------------------------------------- what nodes have said

	-- Nodes that belong together say the same. Where they differ, what each of them supports counts,
	-- and the stricter level; without any, the level that was said last.
	function links.strict()
		if not links.up then return was_strict; end
		for _, link in ipairs(live) do
			if link.security ~= "performance" and link.security ~= "none" then return true; end
		end
		return false;
	end

	-- `what`: actions or conditions.
	function links.supported(what)
		local names = {};
		for _, name in ipairs(live[1] and live[1][what] or {}) do
			local by_all = true;
			for i = 2, #live do
				local has = false;
				for _, other in ipairs(live[i][what]) do has = has or other == name; end
				by_all = by_all and has;
			end
			if by_all then names[#names + 1] = name; end
		end
		return names;
	end

	-- -------------------------------------------------------------------- writing

	local function flush(link)
		if not link.out[1] then return; end
		local xml = "<message from='"..host.."' to='"..link.component.."'>"..table.concat(link.out).."</message>";
		link.out, link.out_bytes = {}, 0;
		if link.up then link.session.send(xml); end
	end

	function links.flush()
		for _, link in ipairs(live) do flush(link); end
	end

	-- An intercept. Elements for the node are collected, for a stanza costs more than an element in one.
	function links.emit_intercept(link, xml)
		if link.out_bytes > 0 and link.out_bytes + #xml > BATCH_BYTES then flush(link); end
		link.out[#link.out + 1] = xml;
		link.out_bytes = link.out_bytes + #xml;
		ctx.schedule();
	end

	-- Anything of a log-in, which waits for each answer: for a while nothing on the link waits for the
	-- kernel. Intercepts alone are the better for it, for what comes together is one transaction.
	function links.emit(link, xml)
		link.prompt_at = time_now();
		if not link.prompt and link.up then
			link.prompt = true;
			facts.send_at_once(link.session.conn, true);
		end
		links.emit_intercept(link, xml);
	end

	function links.end_prompt(now)
		for _, link in ipairs(live) do
			if link.prompt and (now - link.prompt_at >= PROMPT or now < link.prompt_at) then
				link.prompt = false;
				facts.send_at_once(link.session.conn, false);
			end
		end
	end

	-- A request to the node, behind what it was told before.
	function links.send(link, stanza)
		flush(link);
		link.session.send(stanza);
	end

	-- -------------------------------------------------------------------- reload

	local LASTING = { "session", "node", "security", "window", "actions", "conditions" };

	function links.save()
		local saved = {};
		for _, link in ipairs(live) do
			local state = {};
			for _, name in ipairs(LASTING) do state[name] = link[name]; end
			saved[link.component] = state;
		end
		return saved;
	end

	-- Those whose streams are the same as before a reload: the nodes know nothing of it, and need not.
	function links.restore(saved)
		local list = {};
		for _, link in ipairs(links.all) do
			local state = saved[link.component];
			if state and state.session == links.stream(link.component) then
				for _, name in ipairs(LASTING) do link[name] = state[name]; end
				list[#list + 1] = link;
			end
		end
		return list;
	end

	return links;
end
