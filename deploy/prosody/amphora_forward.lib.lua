-- What is sent on: messages for one user go to another, or those for all of this host to a
-- gateway's domain. The node says which, in its greeting; what it said last holds while it is away,
-- and over a restart.
--
-- A message that is sent on is not delivered here: no session, archive or push of the recipient
-- sees it. It bears a mark with the recipients it was sent on for, so that it goes round no loop.

local st = require "util.stanza";
local jid_prep = require "util.jid".prep;
local jid_host = require "util.jid".host;
local jid_split = require "util.jid".split;

local host = module.host;
local hosts = prosody.hosts;

local xmlns = "urn:amphora:intercept:1";
local xmlns_address = "http://jabber.org/protocol/address";
local xmlns_event = "http://jabber.org/protocol/pubsub#event";
local xmlns_muc_user = "http://jabber.org/protocol/muc#user";

local MAX_TIMES = 8; -- a message is sent on, over all servers; more than two or three is a loop that grows

return function (ctx)
	local facts = ctx.facts;
	local forward = {};

	local users, gateway = {}, nil; -- bare JID -> bare JID; the domain for all others
	local store = module:open_store("amphora_forward");

	-- -------------------------------------------------------------------- entries

	-- Is anything sent on? So that a server without entries has no work with them.
	function forward.any() return gateway ~= nil or next(users) ~= nil; end

	local function restore()
		local saved, err = store:get(nil);
		if err then module:log("error", "What is sent on can't be read, until a node says it: %s", err); end
		if saved then users, gateway = saved.users or {}, saved.gateway; end
	end

	local function equal(a, b)
		for key, value in pairs(a) do if b[key] ~= value then return false; end end
		for key in pairs(b) do if a[key] == nil then return false; end end
		return true;
	end

	local function save()
		local something = gateway or next(users) ~= nil;
		local ok, err = store:set(nil, something and { users = users, gateway = gateway } or nil);
		if not ok then module:log("error", "What is sent on can't be kept over a restart: %s", err); end
	end

	-- Takes the entries out of a greeting, in place of those before.
	function forward.greeted(greeting)
		local new_users, new_gateway, n = {}, nil, 0;
		for _, tag in ipairs(greeting.tags) do
			local from, to = jid_prep(tag.attr.from), jid_prep(tag.attr.to);
			if tag.name == "forward" and from and to and jid_host(from) == host
			and from:find("^[^/]+@[^/]+$") and to:find("^[^/]+@[^/]+$") then
				new_users[from], n = to, n + 1;
			elseif tag.name == "gateway" and from == host and to and not to:find("[@/]") then
				new_gateway = to;
			elseif tag.name == "forward" or tag.name == "gateway" then
				module:log("warn", "The node wants %s sent on to %s, which is left out", tag.attr.from, tag.attr.to);
			end
		end
		if new_gateway == gateway and equal(new_users, users) then return; end
		users, gateway = new_users, new_gateway;
		save();
		module:log("info", "Messages for %d users are sent on, for all others %s", n,
			gateway and "to "..gateway or "not");
	end

	-- -------------------------------------------------------------------- marks

	-- For whom a message was sent on before: how often, and was it for this one?
	local function marks(stanza, bare)
		local times, seen = 0, false;
		for _, tag in ipairs(stanza.tags) do
			if tag.name == "redirected" and tag.attr.xmlns == xmlns then
				for recipient in tag:childtags("for") do
					times = times + 1;
					seen = seen or recipient.attr.jid == bare;
				end
			end
		end
		return times, seen;
	end

	local function mark(stanza, bare)
		local element = stanza:get_child("redirected", xmlns);
		if not element then
			element = st.stanza("redirected", { xmlns = xmlns });
			stanza:add_direct_child(element);
		end
		element:add_direct_child(st.stanza("for", { jid = bare }));
	end

	-- -------------------------------------------------------------------- what is sent on

	-- Some of what comes for a user is of his sessions here, and nobody else's: answers to what he
	-- sent, what a room says to an occupant, what he has subscribed to.
	local function is_own(stanza)
		local type = stanza.attr.type;
		return type == "error" or type == "groupchat" or facts.notice_status(stanza)
			or stanza:get_child("x", xmlns_muc_user) ~= nil or stanza:get_child("event", xmlns_event) ~= nil
			or facts.is_from_room(stanza);
	end

	local function entry(bare)
		local to = users[bare];
		if to then return "forwards-to", to; end
		if gateway then return "gateway", jid_split(bare).."@"..gateway; end
	end

	-- How a message is sent on (as the attribute of an intercept is called) and where; nil if it is
	-- not. One that was sent on for this recipient before stays: it came round.
	function forward.target(bare, stanza)
		local how, to = entry(bare);
		if not how or is_own(stanza) then return nil; end
		local _, seen = marks(stanza, bare);
		if seen then return nil; end
		return how, to;
	end

	-- The same for a held message, which may have to be read for it.
	function forward.target_of(held, stanza_of)
		local how, to = entry(held.user.bare);
		if not how then return nil; end
		if held.stays == nil then
			local stanza = stanza_of(held);
			held.stays = not (stanza and forward.target(held.user.bare, stanza)) or false;
		end
		if held.stays then return nil; end
		return how, to;
	end

	-- -------------------------------------------------------------------- sending on

	-- Names the sender in a message that can't bear his address (XEP-0033). A name that is there
	-- already is anybody's.
	local function name_sender(stanza, from)
		local list;
		for _, tag in ipairs(stanza.tags) do
			if tag.name == "addresses" and tag.attr.xmlns == xmlns_address then
				tag:maptags(function (address)
					if address.name == "address" and address.attr.type == "ofrom" then return nil; end
					return address;
				end);
				list = list or tag;
			end
		end
		if not list then
			list = st.stanza("addresses", { xmlns = xmlns_address });
			stanza:add_direct_child(list);
		end
		list:add_direct_child(st.stanza("address", { type = "ofrom", jid = from }));
	end

	-- Sends it on, if it is to be. True if it was, or if its sender got an error for it. The event's
	-- origin gets what is answered here: if the message was held, it may be one that answers nobody.
	function forward.redirect(bare, stanza, from, event)
		local how, to = forward.target(bare, stanza);
		if not how then return false; end
		if marks(stanza, bare) >= MAX_TIMES then
			event.origin.send(st.error_reply(stanza, "cancel", "policy-violation", "The message was sent on too often"));
			return true;
		end
		local message = st.clone(stanza);
		message.attr.from, message.attr.to = from, stanza.attr.to or bare;
		-- Its rules name the sender, and the address that he wrote to (section 4.1 of XEP-0079).
		facts.address_rules(message);
		message.attr.to = to;
		facts.drop_stanza_id(message, bare);
		mark(message, bare);
		if not hosts[jid_host(to)] and not hosts[jid_host(from)] then
			-- No other server lets this one speak for a third.
			name_sender(message, from);
			message.attr.from = bare;
		end
		local context = ctx.queue.routing();
		if context then context.passed = true; end
		if hosts[jid_host(to)] then
			module:send(message, event.silent and event.origin or nil);
		else
			ctx.edge.relay(message, event.silent);
		end
		return true;
	end

	restore();
	return forward;
end
