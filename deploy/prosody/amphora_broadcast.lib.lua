-- Broadcasts: messages of the host's own whose outcome a node wants to know, the names of the
-- accounts, and the commands (XEP-0050) with which administrators ask a node for a broadcast.

local st = require "util.stanza";
local async = require "util.async";
local datetime = require "util.datetime";
local dataforms = require "util.dataforms";
local jid_split = require "util.jid".split;
local usermanager = require "core.usermanager";
local new_id = require "util.id".short;
local time_now = require "util.time".now;

local host = module.host;

local xmlns = "urn:amphora:intercept:1";

local KEYS = "send-"; -- what the keys of such messages begin with, and no others
local REMEMBERED = 20000; -- outcomes at most; the oldest is forgotten
local LISTING = 60; -- seconds for which the names of the accounts are kept, since they were asked for
local PAGE = 500; -- names in one answer at most
local PATIENCE = 10; -- seconds that a command waits for the node
local RATE, MAX_RATE = 50, 1000; -- messages a second

return function (ctx)
	local options = ctx.options;
	local broadcasts = {};

	-- ------------------------------------------------------------------ outcomes

	local waiting = {}; -- key -> { origin, reply } of the newest request
	local outcomes = {}; -- key -> outcome, of those that are resolved
	local order = ctx.new_fifo(); -- { key, at }
	local gates = {}; -- key -> true, of those that wait in the gate of a session

	function broadcasts.is_key(key) return key:sub(1, #KEYS) == KEYS; end

	local function forget_oldest()
		local oldest = order:pop();
		outcomes[oldest.key] = nil;
	end

	local function remember(key, outcome, at)
		if not outcomes[key] then order:push({ key = key, at = at }); end
		outcomes[key] = outcome;
		if order:count() > REMEMBERED then forget_oldest(); end
	end

	local function answer(origin, stanza, outcome)
		origin.send(st.reply(stanza):tag("send", { xmlns = xmlns, outcome = outcome }));
	end

	local function take(key)
		local request = waiting[key];
		waiting[key] = nil;
		return request;
	end

	-- A held message with such a key is resolved.
	function broadcasts.settled(key, outcome)
		gates[key] = nil;
		remember(key, outcome, time_now());
		local request = take(key);
		if request then answer(request.origin, request.stanza, outcome); end
	end

	function broadcasts.gated(key) gates[key] = true; end

	-- It went from a gate to its session.
	function broadcasts.let_out(key)
		if gates[key] then broadcasts.settled(key, "delivered"); end
	end

	local function put_off(request, text)
		request.origin.send(st.error_reply(request.stanza, "wait", "resource-constraint", text));
	end

	-- It is held no more, and nothing has become of it.
	function broadcasts.dropped(key)
		local request = take(key);
		if request then put_off(request, "The server can't hold the message now"); end
	end

	-- Is that a message from the host to one of its users?
	local function flaw(key, message)
		local username, to_host, resource = jid_split(message.attr.to);
		local type = message.attr.type;
		if not broadcasts.is_key(key) or #key > 200 then return "Its key does not begin with "..KEYS..", or is too long"; end
		if message.attr.from ~= host then return "Its sender is not this host"; end
		if not username or to_host ~= host or resource then return "Its recipient is no user of this host"; end
		if type and type ~= "normal" and type ~= "chat" then return "Its type is neither normal nor chat"; end
	end

	function broadcasts.send(origin, stanza, element, message)
		local key, bare = element.attr.key, message.attr.to;
		local wrong = flaw(key, message);
		if wrong then
			origin.send(st.error_reply(stanza, "modify", "bad-request", wrong));
			return;
		end
		if outcomes[key] then return answer(origin, stanza, outcomes[key]); end
		local again = element.attr.again == "true";
		waiting[key] = { origin = origin, stanza = stanza };
		if gates[key] or ctx.queue.holds(bare, key, again) then return; end
		local ok, type, condition, text = ctx.queue.hold_own(bare, message, key, again);
		if not ok then
			waiting[key] = nil;
			origin.send(st.error_reply(stanza, type, condition, text));
		end
	end

	-- Who asked on that stream is gone, and asks again.
	function broadcasts.link_lost(stream)
		for key, request in pairs(waiting) do
			if request.origin == stream then waiting[key] = nil; end
		end
	end

	-- ------------------------------------------------------------------ accounts

	local listing; -- { names, at }

	local function list_accounts()
		local names = {};
		for name in usermanager.users(host) do names[#names + 1] = name; end
		table.sort(names);
		return names;
	end

	-- Where in the sorted list the first name after that one is.
	local function first_after(names, after)
		local low, high = 1, #names + 1;
		while low < high do
			local middle = math.floor((low + high) / 2);
			if names[middle] <= after then low = middle + 1; else high = middle; end
		end
		return low;
	end

	function broadcasts.accounts(origin, stanza, element)
		local after = element.attr.after or "";
		local max = math.max(1, math.min(PAGE, math.floor(tonumber(element.attr.max) or PAGE)));
		-- A listing that begins sees the accounts as they are.
		if not listing or after == "" then
			local ok, names = pcall(list_accounts);
			if not ok then
				module:log("error", "The accounts of %s can't be listed: %s", host, names);
				origin.send(st.error_reply(stanza, "cancel", "feature-not-implemented",
					"The server's authentication can't list its accounts"));
				return;
			end
			listing = { names = names };
		end
		listing.at = time_now();
		local names = listing.names;
		local first = first_after(names, after);
		local last = math.min(first + max - 1, #names);
		local reply = st.reply(stanza):tag("accounts", { xmlns = xmlns, complete = last == #names and "true" or nil });
		for index = first, last do reply:text_tag("account", names[index]); end
		origin.send(reply);
	end

	-- ------------------------------------------------------------------ asking the node

	-- A request to the node and its answer, or nil and what is wrong. The command of the administrator
	-- waits for it; the server does not.
	local function ask(attr, add)
		local link = ctx.links.of(host);
		if not link then return nil, "No node of Amphora is connected to this host now"; end
		local type = attr.action == "list" and "get" or "set";
		local iq = st.iq({ type = type, id = "amphora-"..new_id(), from = host, to = link.component });
		attr.xmlns = xmlns;
		iq:tag("broadcast", attr);
		if add then add(iq); end
		local event, err = async.wait_for(module:send_iq(iq, nil, PATIENCE));
		if not event then return nil, err and (err.text or err.condition) or "No answer"; end
		return event.stanza:get_child("broadcasts", xmlns) or st.stanza("broadcasts", { xmlns = xmlns });
	end

	local function progress(broadcast)
		local attr = broadcast.attr;
		local trouble = broadcast:get_text();
		return ("%s: %s, to %s, %d of %d%s settled (%s delivered, %s stored, %s discarded, %s expired, %s cancelled), "
			.."until %s%s"):format(
			attr.id, attr.state, attr.everyone == "true" and "everyone" or "a list",
			(tonumber(attr.total) or 0) - (tonumber(attr.left) or 0), tonumber(attr.total) or 0,
			attr.counting == "true" and " counted" or "",
			attr.delivered, attr.stored, attr.discarded, attr.expired, attr.cancelled, attr.expires,
			trouble and trouble ~= "" and "; "..trouble or "");
	end

	-- ------------------------------------------------------------------ the command to send one

	local send_form = dataforms.new {
		title = "Send a broadcast";
		instructions = "Each recipient gets the message once: at once, or when they come back before it expires.";
		{ name = "FORM_TYPE", type = "hidden", value = "urn:amphora:broadcast:send" };
		{
			name = "to", type = "list-single", label = "To", required = true;
			options = {
				{ label = "Everyone on "..host, value = "everyone", default = true };
				{ label = "The recipients below", value = "list" };
			};
		};
		{ name = "recipients", type = "jid-multi", label = "Recipients", desc = "Users of "..host..", if not everyone" };
		{ name = "subject", type = "text-single", label = "Subject" };
		{ name = "body", type = "text-multi", label = "Message", required = true };
		{
			name = "expire", type = "text-single", label = "Expires", required = true, value = "86400";
			desc = "In so many seconds, or at a time in UTC, as 2026-12-31T18:00:00Z";
		};
		{
			name = "rate", type = "text-single", label = "Messages a second", value = ("%d"):format(RATE);
			datatype = "xs:integer", range_min = 1, range_max = MAX_RATE;
		};
	};

	local labels = {};
	for _, field in ipairs(send_form) do labels[field.name] = field.label; end

	-- The time that the field says, or nil and what is wrong with it.
	local function expiry(text)
		local seconds = tonumber(text);
		if seconds then
			if seconds >= 1 and seconds <= 366 * 86400 then return datetime.datetime(math.floor(time_now() + seconds)); end
			return nil, "must be 1 second to 366 days from now";
		end
		local at = text and datetime.parse(text);
		if not at then return nil, "must be a number of seconds, or a time as 2026-12-31T18:00:00Z"; end
		if at <= time_now() then return nil, "is in the past"; end
		return datetime.datetime(at);
	end

	-- What is wrong with the fields, each in a line under its label; nil if nothing is.
	local function flaws(fields, errors)
		local list = {};
		local function wrong(name, text) list[#list + 1] = labels[name]..": "..text; end
		for _, field in ipairs(send_form) do
			if errors and errors[field.name] then wrong(field.name, errors[field.name]); end
		end
		if fields.to ~= "everyone" and fields.to ~= "list" and not (errors and errors.to) then
			wrong("to", "must be everyone or list");
		end
		if fields.body and not fields.body:find("%S") then wrong("body", "Required value missing"); end
		if fields.to == "list" and not fields.recipients and not (errors and errors.recipients) then
			wrong("recipients", "Required value missing");
		end
		if fields.to == "everyone" and fields.recipients then
			wrong("recipients", "must be empty if the message is to everyone");
		end
		for _, jid in ipairs(fields.recipients or {}) do
			local node, jid_host, resource = jid_split(jid);
			if not node or jid_host ~= host or resource then wrong("recipients", jid.." is no user of "..host); end
		end
		if fields.expire then
			local at, why = expiry(fields.expire);
			if not at then wrong("expire", why); end
		end
		if list[1] then return table.concat(list, "\n"); end
	end

	local function form_again(form, values, message)
		return {
			status = "executing", actions = { "complete", default = "complete" };
			form = { layout = form, values = values }, error = { message = message };
		}, "executing";
	end

	local function send_command(_, data, state)
		if data.action == "cancel" then return { status = "canceled" }; end
		if not data.form then
			if state then return form_again(send_form, nil, "The form was not filled in"); end
			return { status = "executing", actions = { "complete", default = "complete" }, form = send_form }, "executing";
		end
		local fields, errors = send_form:data(data.form);
		local wrong = flaws(fields, errors);
		if wrong then return form_again(send_form, fields, wrong); end
		local answered, why = ask({
			action = "start", everyone = fields.to == "everyone" and "true" or nil;
			expires = expiry(fields.expire), rate = ("%d"):format(fields.rate or RATE);
		}, function (iq)
			if fields.subject and fields.subject ~= "" then iq:text_tag("subject", fields.subject); end
			iq:text_tag("body", fields.body);
			for _, jid in ipairs(fields.recipients or {}) do iq:tag("recipient", { jid = jid }):up(); end
		end);
		local started = answered and answered:get_child("broadcast");
		if not started then return form_again(send_form, fields, why or "The node gave no answer"); end
		module:log("info", "%s started broadcast %s to %s", data.from, started.attr.id, fields.to);
		return { status = "completed", info = "Broadcast "..progress(started) };
	end

	-- ------------------------------------------------------------------ the command about those that there are

	local list_form = dataforms.new {
		title = "Broadcasts";
		instructions = "Choose one and what is to be done with it.";
		{ name = "FORM_TYPE", type = "hidden", value = "urn:amphora:broadcast:list" };
		{ name = "broadcast", type = "list-single", label = "Broadcast", required = true };
		{
			name = "do", type = "list-single", label = "What to do", required = true;
			options = {
				{ label = "See how it stands", value = "status", default = true };
				{ label = "Pause it", value = "pause" };
				{ label = "Resume it", value = "resume" };
				{ label = "Cancel it", value = "cancel" };
			};
		};
	};
	local actions = { status = true, pause = true, resume = true, cancel = true };

	local function list_broadcasts()
		local answered, why = ask({ action = "list" });
		if not answered then return nil, why; end
		local choices = {};
		for broadcast in answered:childtags("broadcast") do
			table.insert(choices, 1, { label = progress(broadcast), value = broadcast.attr.id });
		end
		return choices;
	end

	local function list_again(message)
		local choices, why = list_broadcasts();
		if not choices then
			return { status = "completed", error = { message = why } };
		elseif not choices[1] then
			return { status = "completed", info = "There are no broadcasts" };
		end
		choices[1].default = true;
		return {
			status = "executing", actions = { "complete", default = "complete" };
			form = { layout = list_form, values = { broadcast = choices } }, error = message and { message = message };
		}, "executing";
	end

	local function list_command(_, data)
		if data.action == "cancel" then return { status = "canceled" }; end
		if not data.form then return list_again(); end
		local fields, errors = list_form:data(data.form);
		local action = fields["do"];
		if errors or not actions[action] then
			return list_again("Choose a broadcast, and what is to be done with it");
		end
		local answered, why = ask({ action = action, id = fields.broadcast });
		local broadcast = answered and answered:get_child("broadcast");
		if not broadcast then return list_again(why or "The node gave no answer"); end
		if action ~= "status" then module:log("info", "%s: %s broadcast %s", data.from, action, broadcast.attr.id); end
		return { status = "completed", info = "Broadcast "..progress(broadcast) };
	end

	-- What goes wrong is told to the administrator and the log, not to his whole session.
	local function protect(handler)
		return function (...)
			local ok, reply, state = pcall(handler, ...);
			if ok then return reply, state; end
			module:log("error", "While carrying out a command about broadcasts: %s", reply);
			return { status = "error", error = { type = "cancel", condition = "internal-server-error", text = "See the server's log" } };
		end;
	end

	module:depends "adhoc";
	local adhoc_new = module:require "adhoc".new;
	module:provides("adhoc", adhoc_new("Send a broadcast", "urn:amphora:broadcast:send", protect(send_command), "admin"));
	module:provides("adhoc", adhoc_new("Broadcasts", "urn:amphora:broadcast:list", protect(list_command), "admin"));

	-- ------------------------------------------------------------------ time, load, unload

	function broadcasts.sweep(now)
		local oldest = order:peek();
		while oldest and now - oldest.at >= options.memory_of_keys do
			forget_oldest();
			oldest = order:peek();
		end
		if listing and now - listing.at >= LISTING then listing = nil; end
	end

	local function list_outcomes()
		local list = {};
		for index = order.first, order.last do
			local entry = order[index];
			list[#list + 1] = { key = entry.key, at = entry.at, outcome = outcomes[entry.key] };
		end
		return list;
	end

	local function adopt_outcomes(list)
		for _, entry in ipairs(list or {}) do remember(entry.key, entry.outcome, entry.at); end
	end

	-- For a reload.
	function broadcasts.save() return { outcomes = list_outcomes(), gates = gates }; end

	function broadcasts.adopt(saved)
		if not saved then return; end
		gates = saved.gates;
		adopt_outcomes(saved.outcomes);
	end

	local store = module:open_store("amphora_broadcast");

	-- Outcomes outlive a restart, so that who was asked for before it is not sent his message again.
	function broadcasts.keep()
		local list = list_outcomes();
		local ok, err = store:set(nil, list[1] and { outcomes = list } or nil);
		if not ok then module:log("error", "Outcomes of broadcasts can't be kept over a restart: %s", err); end
	end

	function broadcasts.restore()
		local kept, err = store:get(nil);
		if err then module:log("error", "Outcomes of broadcasts that were kept can't be read: %s", err); end
		if not kept then return; end
		adopt_outcomes(kept.outcomes);
		store:set(nil, nil);
	end

	-- What is held has gone to the spool, or is held no more: whoever waits asks again.
	function broadcasts.unload()
		for _, request in pairs(waiting) do put_off(request, "The module is unloaded"); end
		waiting = {};
	end

	return broadcasts;
end
