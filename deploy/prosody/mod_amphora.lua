-- The interceptor of Amphora for Prosody 0.12: it holds messages, reports them to a node over an
-- external component's stream, and carries out what the node decides. It decides nothing.
--
-- The protocol is described in docs/intercept.md. What is where:
--   mod_amphora.lua         options, greetings, hooks into the server, discovery, load and unload
--   amphora_links.lib.lua   which nodes are there, whose users are whose, what goes to them
--   amphora_queue.lib.lua   held messages: order, intercepts, verdicts
--   amphora_turns.lib.lua   messages without rules that wait behind held ones
--   amphora_edge.lib.lua    messages with rules on their way to another server
--   amphora_servers.lib.lua what other servers support
--   amphora_window.lib.lua  what a node has not answered
--   amphora_seats.lib.lua   sessions: gates, announcements, hand-over, acknowledgements
--   amphora_broadcast.lib.lua  messages to many: their outcomes, accounts, commands of administrators
--   amphora_retrieve.lib.lua  what users ask about their stored messages
--   amphora_spool.lib.lua   the file for what no node can take now
--   amphora_facts.lib.lua   rights, accounts, stanzas and bytes
--   amphora_forward.lib.lua what is sent on to other addresses and gateways
--   amphora_command.lib.lua prosodyctl mod_amphora ...

if module.host == "*" then -- loaded by prosodyctl
	module.command = module:require "amphora_command";
	return;
end

local st = require "util.stanza";
local jid_split = require "util.jid".split;
local jid_prep = require "util.jid".prep;
local hex = require "util.hex".to;
local random_bytes = require "util.random".bytes;
local sha1 = require "util.hashes".sha1;
local time_now = require "util.time".now;
local xpcall = require "util.xpcall".xpcall;
local datamanager = require "util.datamanager";

local host = module.host;
local hosts = prosody.hosts;
local full_sessions = prosody.full_sessions;

local VERSION = "0.1.0";
local PROTOCOL = "1";
local SWEEP = 0.25; -- seconds between two looks at everything that has a time
local DAY = 24 * 60 * 60;
local READ_BYTES = 32 * 1024; -- of the node's stream in a turn of the event loop; four times what a client gets

local MAX_STANZA = 4 * 1024 * 1024 - 64 * 1024; -- bytes of a message that still fits into what a node reads

local xmlns = "urn:amphora:intercept:1";
local xmlns_amp = "http://jabber.org/protocol/amp";
local xmlns_forward = "urn:xmpp:forward:0";
local xmlns_offline = "http://jabber.org/protocol/offline";

-- ==================================================================================== options

local function component_names()
	local names, known = {}, {};
	for _, name in ipairs(module:get_option_array("amphora_components", {})) do
		local component = type(name) == "string" and jid_prep(name);
		if not component or component:find("[@/]") then
			error("amphora_components: "..tostring(name).." is not a domain", 0);
		elseif known[component] then
			error("amphora_components names "..component.." twice", 0);
		end
		known[component], names[#names + 1] = true, component;
	end
	if not names[1] then
		error("amphora_components must name a component, as in amphora_components = { \"amp.example.org\" }", 0);
	end
	return names;
end
local components = component_names();

local function number(name, default, minimum, maximum)
	local value = module:get_option_number("amphora_"..name, default);
	if not value or value < minimum then
		error(("amphora_%s must be a number of at least %g"):format(name, minimum), 0);
	elseif maximum and value > maximum then
		error(("amphora_%s must be a number of at most %g"):format(name, maximum), 0);
	end
	return value;
end

local options = {
	resend = number("resend", 10, 0.1);
	hold = number("hold", 30, 0);
	memory_of_keys = number("memory_of_keys", 600, 1);
	repeat_after = number("repeat", 5, 0.1);
	gate_limit = number("gate_limit", 60, 0);
	window = number("window", 1024, 1);
	window_bytes = number("window_bytes", 16 * 1024 * 1024, 1);
	available_window = number("available_window", 256, 1);
	session_window = number("session_window", 400, 1);
	gate_messages = number("gate_messages", 100, 1);
	gate_bytes = number("gate_bytes", 1024 * 1024, 1);
	held_messages = number("held_messages", 10000, 1);
	held_bytes = number("held_bytes", 64 * 1024 * 1024, 1);
	retrieve_timeout = number("retrieve_timeout", 30, 0.1);
	spool_limit = number("spool_limit", 1024 * 1024 * 1024, 1);
	edge_messages = number("edge_messages", 1000, 1);
	edge_bytes = number("edge_bytes", 8 * 1024 * 1024, 1);
	disco_cache = number("disco_cache", DAY, 0, DAY); -- not longer: XEP-0079, section 2.1.1
	disco_retry = number("disco_retry", 60, 0, DAY);
	disco_timeout = number("disco_timeout", 10, 0.1);
	smacks_queue = math.max(module:get_option_number("smacks_max_queue_size", 500), 100);
};

-- ==================================================================================== context

local fifo = {};
fifo.__index = fifo;
function fifo:push(v) self.last = self.last + 1; self[self.last] = v; end
function fifo:peek() return self[self.first]; end
function fifo:empty() return self.first > self.last; end
function fifo:count() return self.last - self.first + 1; end
function fifo:pop()
	local v = self[self.first];
	if v ~= nil then
		self[self.first] = nil;
		self.first = self.first + 1;
	end
	return v;
end
function fifo:clear()
	while self:pop() do end -- luacheck: ignore 542
end
local function new_fifo() return setmetatable({ first = 1, last = 0 }, fifo); end

local ctx = {
	options = options, new_fifo = new_fifo;
	token = hex(random_bytes(6));
	-- The stream limit for components is a setting of mod_component, which is global.
	max_stanza = math.min(MAX_STANZA, module:context("*"):get_option_number("component_stanza_size_limit",
		module:context("*"):get_option_number("s2s_stanza_size_limit", 512 * 1024)));
};
ctx.facts = module:require "amphora_facts";
local facts = ctx.facts;

-- ==================================================================================== the links

local links = module:require "amphora_links"(ctx, components);
ctx.links = links;
ctx.window = module:require "amphora_window"(ctx);

local last_key = 0;
function ctx.new_key()
	last_key = last_key + 1;
	return ("%s-%d"):format(ctx.token, last_key);
end

local queue, seats, retrieve, edge;

local spool_path = datamanager.getpath(nil, host, "amphora_spool", "log", true);
local spool_error;
ctx.spool, spool_error = module:require "amphora_spool".open(spool_path, function (...) module:log(...); end);
if not ctx.spool then
	error("The spool "..spool_path.." can't be opened: "..tostring(spool_error), 0);
end
local spool = ctx.spool;

ctx.forward = module:require "amphora_forward"(ctx);
queue = module:require "amphora_queue"(ctx);
ctx.queue = queue;
seats = module:require "amphora_seats"(ctx);
ctx.seats = seats;
ctx.broadcasts = module:require "amphora_broadcast"(ctx);
local broadcasts = ctx.broadcasts;
retrieve = module:require "amphora_retrieve"(ctx);
ctx.retrieve = retrieve;
ctx.servers = module:require "amphora_servers"(ctx);
edge = module:require "amphora_edge"(ctx);
ctx.edge = edge;

local function protect(what, f)
	return function (...)
		local ok, ret = xpcall(f, debug.traceback, ...);
		if ok then return ret; end
		module:log("error", "While %s: %s", what, ret);
	end
end

local check_links;

-- What one turn of the event loop brought goes out together. Under a flood the timer may come
-- late, so a verdict pumps as well.
local scheduled = false;
local first, second = queue, edge;
local pump = protect("sending to the node", function ()
	if check_links() then
		seats.pump();
		-- Whoever comes first may fill the window. So it is the other's turn after that.
		local sent = ctx.window.sent_count;
		for _, link in ipairs(links.live()) do
			first.pump(link);
			second.pump(link);
		end
		if ctx.window.sent_count > sent then first, second = second, first; end
		retrieve.pump();
		links.flush();
	end
	spool:pay();
end);
function ctx.schedule()
	if scheduled then return; end
	scheduled = true;
	module:add_timer(0, function ()
		scheduled = false;
		pump();
	end);
end

-- The features are announced while a node is there.
local function announce_features(there)
	local change = there and module.add_item or module.remove_item;
	change(module, "feature", xmlns_amp);
	change(module, "feature", xmlns_offline);
end

-- Users have come to another link, or to none: `moved` tells who.
local function users_moved(moved)
	ctx.tell_removals(moved);
	queue.moved(moved);
	edge.moved(moved);
	seats.moved(moved);
end

local function link_lost(link, reason)
	if not link.up then return; end
	local stream = link.session;
	local moved = links.gone(link);
	if not links.up then announce_features(false); end
	local held = queue.held() + edge.held();
	module:log("warn", "Node %s at %s is gone: %s; %d messages are held", link.node, link.component, reason, held);
	ctx.window.link_lost(link);
	users_moved(moved);
	broadcasts.link_lost(stream);
	retrieve.link_lost(stream);
end

-- Is any node there?
function check_links()
	for _, link in ipairs(links.all) do
		if link.up and links.stream(link.component) ~= link.session then link_lost(link, "its stream was closed"); end
	end
	return links.up;
end

-- ------------------------------------------------------------------------------------ greeting

local function names_of(greeting, kind)
	local names = {};
	for tag in greeting:childtags(kind) do
		if tag.attr.name then names[#names + 1] = tag.attr.name; end
	end
	return names;
end

local function links_came(list)
	local first_one = not links.up;
	local moved = links.came(list);
	if first_one then announce_features(true); end
	local held = queue.held() + edge.held();
	for _, link in ipairs(list) do
		module:log("info", "Node %s is there at %s (%s); %d messages are held, %d are in the spool",
			link.node, link.component, link.security or "?", held, spool:waiting());
	end
	users_moved(moved);
	pump();
end

local function greet(link, origin, stanza, greeting)
	if greeting.attr.version ~= PROTOCOL then
		module:log("error", "The node at %s speaks version %s of the protocol, this module %s",
			link.component, greeting.attr.version, PROTOCOL);
		origin.send(st.error_reply(stanza, "modify", "not-acceptable", "This is version "..PROTOCOL));
		return;
	end
	link_lost(link, "it greeted again");
	link.session = origin;
	if origin.conn.set_mode then origin.conn:set_mode(READ_BYTES); end
	link.node, link.security = greeting.attr.node or "?", greeting.attr.security;
	link.window = math.max(1, math.min(options.window, tonumber(greeting.attr.window) or options.window));
	link.actions, link.conditions = names_of(greeting, "action"), names_of(greeting, "condition");
	ctx.forward.greeted(greeting);
	origin.send(st.reply(stanza):tag("greeting", {
		xmlns = xmlns, version = PROTOCOL, server = "Prosody "..prosody.version, module = VERSION;
		acks = hosts[host].modules.smacks and "true" or "false", ["max-stanza"] = ("%d"):format(ctx.max_stanza);
	}));
	links_came({ link });
end

-- ------------------------------------------------------------------------------------ sends

-- A stanza of the host's own, out of <send><forwarded/></send>.
function ctx.own_stanza(element)
	local forwarded = element:get_child("forwarded", xmlns_forward);
	local message = forwarded and forwarded:get_child("message", "jabber:client");
	if not message then return nil, "it holds no message"; end
	message = facts.unqualify(st.clone(message));
	local _, from_host = jid_split(message.attr.from);
	if from_host ~= host then return nil, "its sender is not this host"; end
	local to = jid_prep(message.attr.to);
	if not to then return nil, "its recipient is no address"; end
	message.attr.to = to;
	return message;
end

local routed_keys, routed_order = {}, new_fifo();

local function handle_send(origin, stanza, element)
	local key = element.attr.key;
	local message, err = ctx.own_stanza(element);
	if not key or not message then
		origin.send(st.error_reply(stanza, "modify", "bad-request", err or "It has no key"));
		return;
	end
	if element.attr.settle == "true" then
		return broadcasts.send(origin, stanza, element, message);
	end
	local result = st.reply(stanza);
	if not routed_keys[key] then
		local username = jid_split(element.attr["for"]);
		if links.strict() and not (username and facts.may_see_presence(username, message.attr.to)) then
			origin.send(result:tag("send", { xmlns = xmlns, withheld = "true" }));
			return;
		end
		local now = time_now();
		routed_keys[key] = now;
		routed_order:push({ key = key, at = now });
		queue.send_out(message);
	end
	origin.send(result);
end

-- ------------------------------------------------------------------------------------ accounts removed

local function tell_removal(removal)
	local link = links.of(removal.bare);
	if not link then return; end
	removal.at, removal.id = time_now(), "amphora-removed-"..hex(random_bytes(6));
	links.send(link, st.iq({ type = "set", id = removal.id, from = host, to = link.component })
		:tag("account-removed", { xmlns = xmlns, jid = removal.bare, stamp = removal.stamp }));
end

function ctx.tell_removals(moved)
	for _, removal in ipairs(queue.removals()) do
		if moved(removal.bare) then tell_removal(removal); end
	end
end

local function repeat_removals(now)
	if not links.up then return; end
	for _, removal in ipairs(queue.removals()) do
		if not removal.at or now - removal.at >= options.resend then tell_removal(removal); end
	end
end

local function handle_answer(origin, stanza)
	if retrieve.answer(origin, stanza) then return true; end
	for _, removal in ipairs(queue.removals()) do
		if removal.id == stanza.attr.id then
			if stanza.attr.type == "result" then
				queue.removal_done(removal.bare);
			end
			return true; -- an error is a reason to ask again later
		end
	end
end

module:hook_global("user-deleted", function (event)
	if event.host ~= host then return; end
	local removal = queue.remove_account(event.username.."@"..host);
	if check_links() then tell_removal(removal); end
end, -10);

-- ------------------------------------------------------------------------------------ from the component

-- The link of a component that the option names.
local function link_from(origin)
	return origin.type == "component" and links.of_component(origin.host) or nil;
end

local message_handlers = {
	verdicts = function (element, link)
		for verdict in element:childtags("verdict") do
			if not edge.verdict(verdict, link) then queue.verdict(verdict, link); end
		end
	end;
	["handed-over"] = function (element, link) seats.handed_over(element, link); end;
	["hand-over"] = function (element, link)
		if element.attr.view == "true" then retrieve.hand_over(element, link); else seats.hand_over(element, link); end
	end;
	deleted = function (element, link)
		if not retrieve.deleted(element, link) then seats.deleted(element, link); end
	end;
};

local handle_message = protect("reading a message of the node", function (link, origin, stanza)
	check_links();
	if not link.up or origin ~= link.session then
		module:log("warn", "%s sent a message without a greeting, it is left out", link.component);
		return;
	end
	for _, element in ipairs(stanza.tags) do
		local handler = element.attr.xmlns == xmlns and message_handlers[element.name];
		if handler then
			local ok, err = xpcall(handler, debug.traceback, element, link);
			if not ok then module:log("error", "While reading <%s/> of the node: %s", element.name, err); end
		end
	end
	pump();
end);

module:hook("message/host", function (event)
	local origin, stanza = event.origin, event.stanza;
	local link = link_from(origin);
	if not link then return; end
	-- Errors are what comes back of our own messages after a stream broke: they go again anyway.
	if stanza.attr.type ~= "error" then handle_message(link, origin, stanza); end
	return true;
end, 1000);

local function handle_iq(link, origin, stanza)
	local type, element = stanza.attr.type, stanza.tags[1];
	if type == "result" or type == "error" then return handle_answer(origin, stanza); end
	if not element or element.attr.xmlns ~= xmlns then return; end
	if origin ~= links.stream(link.component) then return; end
	if type == "set" and element.name == "greeting" then
		greet(link, origin, stanza, element);
	elseif type == "set" and element.name == "send" then
		if check_links() and link.up then
			handle_send(origin, stanza, element);
		else
			origin.send(st.error_reply(stanza, "wait", "unexpected-request", "Greet first"));
		end
	elseif type == "get" and element.name == "accounts" then
		broadcasts.accounts(origin, stanza, element);
	else
		origin.send(st.error_reply(stanza, "cancel", "feature-not-implemented"));
	end
	return true;
end

module:hook("iq/host", function (event)
	local origin, stanza = event.origin, event.stanza;
	local link = link_from(origin);
	if not link then return; end
	local ok, ret = xpcall(handle_iq, debug.traceback, link, origin, stanza);
	if ok then return ret; end
	module:log("error", "While reading an iq of the node: %s", ret);
	if stanza.attr.type == "set" or stanza.attr.type == "get" then
		origin.send(st.error_reply(stanza, "cancel", "internal-server-error"));
	end
	return true;
end, 1000);

-- component-disconnected comes before mod_component knows it, and for streams that were refused
-- too; component-authenticated while the old stream may still be there. So both only make us look.
local watched = {}; -- component -> true
local function watch_component(component)
	if watched[component] or not hosts[component] then return; end
	if not (hosts[component].modules and hosts[component].modules.component) then return; end
	watched[component] = true;
	local component_module = module:context(component);
	local function look() module:add_timer(0, check_links); end
	component_module:hook("component-authenticated", look);
	component_module:hook("component-disconnected", look);
end
local function watch_components()
	for _, component in ipairs(components) do watch_component(component); end
end
watch_components();
module:hook_global("host-activated", function () module:add_timer(0, watch_components); end, -100);
module:hook_global("host-deactivated", function (name)
	if links.of_component(name) then
		watched[name] = nil;
		check_links();
	end
end);
module:hook_global("server-started", function ()
	for _, component in ipairs(components) do
		if not hosts[component] then
			module:log("error", "%s is not a component of this server: no node can connect as it", component);
		elseif not hosts[component].modules.component then
			module:log("error", "%s is not an external component: no node can connect as it", component);
		end
	end
end);

-- ==================================================================================== intercept

-- Before privacy lists (500) and the block list (100), and so before everything that leaves a
-- trace of the message: archive, carbons, push.
local intake = protect("a message was looked at", function (event)
	local origin, stanza = event.origin, event.stanza;
	local username = jid_split(stanza.attr.to);
	if not stanza.attr.to then username = origin.username; end
	if not username then return; end
	local from = stanza.attr.from or origin.full_jid or "";
	local bare = username.."@"..host;
	if facts.has_rules(stanza) then
		queue.intercept_rules(bare, stanza, from);
		return true;
	end
	local pair = queue.must_follow(bare, from, stanza);
	if pair then
		queue.follow(pair, stanza, bare);
		return true;
	end
end);

local function on_message(event)
	if event.amphora then return; end
	return intake(event);
end
module:hook("message/bare", on_message, 600);
module:hook("message/full", on_message, 600);

-- Below privacy lists (500) and the block list (100): what they refuse does not leave. Above the
-- archive (0) and carbons (-0.5), which see what does.
local leaving = protect("a message for another server was looked at", edge.intercept);
module:hook("pre-message/bare", leaving, 50);
module:hook("pre-message/full", leaving, 50);
module:hook("pre-message/host", leaving, 50);

local function around_message(fire, name, event) return queue.around_message(fire, name, event); end
module:wrap_event("message/bare", around_message);
module:wrap_event("message/full", around_message);

-- Behind the block list, and before archive, carbons and sessions: they are passed by.
local redirect = protect("a message was sent on", function (event)
	local origin, stanza = event.origin, event.stanza;
	local username = jid_split(stanza.attr.to);
	if not stanza.attr.to then username = origin.username; end
	local from = stanza.attr.from or origin.full_jid;
	if not username or not from then return; end
	return ctx.forward.redirect(username.."@"..host, stanza, from, event) or nil;
end);
local function on_passed(event)
	if ctx.forward.any() then return redirect(event); end
end
module:hook("message/bare", on_passed, 50);
module:hook("message/full", on_passed, 50);

-- After push (1), before mod_offline (-1), which must not see it: what is stored is a node's.
module:hook("message/offline/handle", function (event)
	local ok, ret = xpcall(event.amphora or queue.intercept_offline, debug.traceback, event, event.username);
	if ok then return ret; end
	module:log("error", "While a message was taken for storage: %s", ret);
end, 0);

module:hook("message/offline/broadcast", function () return true; end, -0.5);

-- The server would discard an error to someone who is away. If it is the answer to a rule, it is
-- kept for the sender like a message.
local function keep_notice(event)
	local stanza = event.stanza;
	if stanza.attr.type ~= "error" or not facts.notice_status(stanza) then return; end
	local to = stanza.attr.to;
	local username = jid_split(to);
	if not username or full_sessions[to] or not facts.account_exists(username) then return; end
	return queue.intercept_offline(event, username);
end
module:hook("message/bare", keep_notice, -0.9);
module:hook("message/full", keep_notice, -0.9);

-- mod_csi_simple lets errors through to an inactive client at once. An alert says the same: the
-- message did not arrive. A notification waits, like a receipt.
module:hook("csi-is-stanza-important", function (event)
	local stanza = event.stanza;
	if st.is_stanza(stanza) and facts.notice_status(stanza) == "alert" then
		event.reason = "delivery failure";
		return true;
	end
end);

-- ==================================================================================== discovery

module:add_feature("msgoffline");

module:hook("host-disco-info-node", function (event)
	if event.node ~= xmlns_amp or not check_links() then return; end
	event.exists = true;
	event.reply:tag("identity", { category = "server", type = "im", name = module:get_option_string("name", "Prosody") }):up();
	event.reply:tag("feature", { var = xmlns_amp }):up();
	for _, name in ipairs(links.supported("actions")) do
		event.reply:tag("feature", { var = xmlns_amp.."?action="..name }):up();
	end
	for _, name in ipairs(links.supported("conditions")) do
		event.reply:tag("feature", { var = xmlns_amp.."?condition="..name }):up();
	end
end);

module:hook("stream-features", function (event)
	if event.origin.username and check_links() then
		event.features:tag("amp", { xmlns = "http://jabber.org/features/amp" }):up();
	end
end);

-- ==================================================================================== the server's own storage

-- What mod_offline stored before, or while this module was not loaded, moves into the spool. The
-- keys come from what the archive says of a message, so that an import that is cut off and
-- begun again adds nothing twice.
local function import_offline()
	local store = module:open_store("offline", "archive");
	if not store or not store.users then return; end
	local ok, list = pcall(function ()
		local names = {};
		for username in store:users() do names[#names + 1] = username; end
		return names;
	end);
	if not ok then
		module:log("error", "The server's offline messages can't be listed: %s", list);
		return;
	end
	for _, username in ipairs(list) do
		local bare, n = username.."@"..host, 0;
		local messages, err = store:find(username);
		if not messages then
			module:log("error", "The offline messages of %s can't be read and stay where they are: %s", bare, err);
		else
			local known, moved, complete = spool:keys(bare), {}, true;
			for id, stanza, when in messages do
				local key = "import-"..sha1(bare.."\0"..id.."\0"..tostring(when), true);
				if complete and not known[key] then
					local xml, archived = facts.seal(stanza, bare, key);
					spool.max_ord = spool.max_ord + 1;
					local handle = spool:append(bare, {
						key = key, stage = "offline", ord = spool.max_ord, stamp = facts.timestamp(when), archived = archived;
						from = stanza.attr.from or "", addressed = stanza.attr.to or bare, xml = xml;
					});
					moved[#moved + 1] = handle;
					complete = handle ~= nil;
				end
				n = n + 1;
			end
			-- All of a user's messages move, or none.
			for _, handle in ipairs(moved) do
				if complete then spool:release(bare, handle); else spool:delete(bare, handle); end
			end
			if not complete then
				module:log("error", "The offline messages of %s stay where they are, for the spool can't be written", bare);
			elseif n > 0 then
				local deleted, why = store:delete(username);
				if deleted then
					module:log("info", "%d offline messages of %s moved into the spool", n, bare);
				else
					module:log("error", "%d offline messages of %s were copied into the spool, but can't be deleted where they were: "
						.."%s. They come again after a restart unless somebody deletes them", n, bare, tostring(why));
				end
			end
		end
	end
end

-- ==================================================================================== time, load, unload

local function sweep(now)
	check_links();
	ctx.window.sweep(now);
	queue.sweep(now);
	edge.sweep(now);
	seats.sweep(now);
	broadcasts.sweep(now);
	retrieve.sweep(now);
	repeat_removals(now);
	local oldest = routed_order:peek();
	while oldest and now - oldest.at >= options.memory_of_keys do
		routed_keys[oldest.key] = nil;
		routed_order:pop();
		oldest = routed_order:peek();
	end
	spool:tidy();
	links.end_prompt(now);
	pump();
end

local protected_sweep = protect("time passed", sweep);
module:add_timer(SWEEP, function ()
	protected_sweep(time_now());
	return SWEEP;
end);

-- Sessions are closed at -90 and -100; what they had not acknowledged comes back then, and goes
-- to the spool at once.
module:hook_global("server-stopping", function ()
	queue.stopping = true;
	queue.spool_all("The server stops");
	edge.stop("The server stops");
end, 10);
local function last_chance()
	queue.stopping = true;
	queue.spool_all("The server stops");
	broadcasts.keep();
end
module:hook_global("server-stopping", last_chance, -1000);
module:hook_global("server-cleanup", last_chance);

function module.load()
	import_offline();
	facts.loading = nil;
	queue.restore_removals();
	local saved = type(module.saved_state) == "table" and module.saved_state or nil;
	local same = links.restore(saved and saved.links or {});
	seats.adopt(saved and saved.seats);
	broadcasts.adopt(saved and saved.broadcasts);
	broadcasts.restore();
	retrieve.adopt(saved and saved.retrieve);
	if same[1] then links_came(same); end
	seats.find_links();
	retrieve.find_links();
	for _, link in ipairs(links.all) do
		local stream = links.stream(link.component);
		if stream and not link.up then
			-- It greeted while nobody was there to answer, and is asked to do so again.
			stream.send("<message from='"..host.."' to='"..link.component.."'><hello xmlns='"..xmlns.."'/></message>");
		end
	end
	if spool.live > 0 then
		module:log("info", "%d messages are in the spool", spool.live);
	end
end

function module.save()
	return {
		seats = seats.save(), retrieve = retrieve.save(), broadcasts = broadcasts.save();
		links = links.save();
	};
end

function module.unload()
	queue.stopping = true;
	-- First, so that what waited for its pair goes into the gates and not past them.
	queue.spool_all("The module is unloaded");
	edge.stop("The module is unloaded");
	broadcasts.unload();
	seats.unload();
	retrieve.unload();
	spool:close();
end
