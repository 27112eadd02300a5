-- What the server knows and a node asks for: rights, block lists, accounts, and the handling of
-- stanzas between Prosody's tables and the bytes on the link.

local st = require "util.stanza";
local jid_split = require "util.jid".split;
local jid_bare = require "util.jid".bare;
local jid_prep = require "util.jid".prep;
local parse_xml = require "util.xml".parse;
local new_cache = require "util.cache".new;
local rostermanager = require "core.rostermanager";
local usermanager = require "core.usermanager";
local modulemanager = require "core.modulemanager";
local time_now = require "util.time".now;
local socket = require "socket";
local by_epoll = require "net.server".get_backend() == "epoll";

local host = module.host;
local hosts = prosody.hosts;

local xmlns_amp = "http://jabber.org/protocol/amp";
local xmlns_client = "jabber:client";
local xmlns_sid = "urn:xmpp:sid:0";
local xmlns_delay = "urn:xmpp:delay";
local xmlns_muc_user = "http://jabber.org/protocol/muc#user";
local xmlns_invitation = "jabber:x:conference";

local OWN_ID = "amphora-"; -- stanza ids of this module begin so, those of an archive do not

local MAX_OVERHEAD = 4096; -- bytes of all that a node wraps round a message to send it back
local MAX_DEPTH = 60; -- levels of elements in a message that a node reads

local facts = {};

-- ------------------------------------------------------------------------------ time

-- XEP-0082 in UTC with milliseconds, which is what expiry is decided by.
function facts.timestamp(t)
	t = t or time_now();
	local seconds = math.floor(t);
	return os.date("!%Y-%m-%dT%H:%M:%S", seconds)..(".%03dZ"):format(math.floor((t - seconds) * 1000));
end

-- ------------------------------------------------------------------------------ connections

-- What is written goes out although the other side has not confirmed what came before (Nagle's
-- algorithm): here each waits for the other's answer, and that would come 40 ms later. The event
-- loop writes at the end of a turn, so there are no more packets by it than turns.
function facts.send_at_once(conn, on)
	if not conn or not conn.setoption or conn:setoption("tcp-nodelay", on) then return; end
	-- LuaSec's sockets do not pass the option on.
	local inner = conn.conn;
	pcall(function ()
		local tcp = socket.tcp();
		tcp:setfd(inner:getfd());
		tcp:setoption("tcp-nodelay", on);
		tcp:setfd(-1);
	end);
end

-- Until resume_writes() of what is returned, what is written to the session is only put together:
-- each write by itself would tell the kernel anew that something is to be written. Nil if
-- somebody else holds its writes back, it has no connection, or the server's network is another
-- one than that where this can be told.
function facts.write_together(session)
	local conn = session.conn;
	if not by_epoll or not conn or not conn.pause_writes or conn._write_lock then return nil; end
	conn:pause_writes();
	return conn;
end

-- Gives what was written to the socket now, as much as it takes, and not at the end of the turn.
function facts.flush(conn)
	if by_epoll and conn and conn.writebuffer and not conn._writing and not conn._write_lock then
		conn:onwritable();
	end
end

-- ------------------------------------------------------------------------------ rights

-- mod_blocklist keeps its lists to itself, so this is a second view of the same store. It is
-- dropped when the user edits his list, before mod_blocklist carries the edit out.
local blocklists = new_cache(1024);
local blocklist_store;

local function forget_blocklist(event)
	local username = event.username or (event.origin and event.origin.username);
	if username then blocklists:set(username, nil); end
end
module:hook("iq-set/self/urn:xmpp:blocking:block", forget_blocklist, 100);
module:hook("iq-set/self/urn:xmpp:blocking:unblock", forget_blocklist, 100);
module:hook_global("user-deleted", function (event)
	if event.host == host then forget_blocklist(event); end
end, 100);

function facts.blocks(username, sender)
	if not hosts[host].modules.blocklist then return false; end
	local list = blocklists:get(username);
	if not list then
		blocklist_store = blocklist_store or module:open_store("blocklist");
		list = blocklist_store:get(username) or {};
		blocklists:set(username, list);
	end
	if next(list) == nil then return false; end
	local node, sender_host = jid_split(sender);
	return list[sender] ~= nil or list[sender_host] ~= nil
		or (node ~= nil and list[node.."@"..sender_host] ~= nil);
end

-- From the recipient's own roster, whatever the sender's says: rostermanager's own question
-- would look into the roster of a local sender who is online. An account that does not exist is
-- looked up in the same way and has an empty roster.
function facts.may_see_presence(username, sender)
	local sender_bare = jid_bare(sender);
	if sender_bare == username.."@"..host then return true; end
	if not sender_bare then return false; end
	-- Both are looked up, that a block takes no other time than a stranger.
	local blocked = facts.blocks(username, sender);
	local roster = rostermanager.load_roster(username, host);
	local item = roster and roster[sender_bare];
	return not blocked and item ~= nil and (item.subscription == "from" or item.subscription == "both");
end

function facts.account_exists(username)
	return usermanager.user_exists(username, host) and true or false;
end

-- ------------------------------------------------------------------------------ messages

local function is_amp(tag) return tag.name == "amp" and tag.attr.xmlns == xmlns_amp; end

function facts.is_from_room(stanza)
	local _, from_host = jid_split(stanza.attr.from);
	local sender_host = from_host and hosts[from_host];
	return sender_host and sender_host.type == "component" and sender_host.modules.muc ~= nil;
end

-- Does the message carry rules that are to be looked at here? Not those from or about a room: an
-- error in answer would throw the recipient out of it.
function facts.has_rules(stanza)
	local found = false;
	for _, tag in ipairs(stanza.tags) do
		if is_amp(tag) then
			if tag.attr.status then return false; end
			found = true;
		elseif tag.name == "x" and (tag.attr.xmlns == xmlns_muc_user or tag.attr.xmlns == xmlns_invitation) then
			return false;
		end
	end
	if not found then return false; end
	local type = stanza.attr.type;
	return type ~= "error" and type ~= "groupchat" and not facts.is_from_room(stanza);
end

-- Does it carry rules, whether they are to be looked at or not?
function facts.mentions_rules(stanza)
	for _, tag in ipairs(stanza.tags) do
		if is_amp(tag) then return true; end
	end
	return false;
end

-- The status of an answer to a rule; nil if it is none.
function facts.notice_status(stanza)
	for _, tag in ipairs(stanza.tags) do
		if is_amp(tag) and tag.attr.status then return tag.attr.status; end
	end
end

-- from and to of <amp/> are the message's own on everything that leaves this server with it.
function facts.address_rules(stanza)
	for _, tag in ipairs(stanza.tags) do
		if is_amp(tag) then
			tag.attr.from, tag.attr.to = stanza.attr.from, stanza.attr.to;
		end
	end
end

-- While this module is being loaded, the archive may be about to be loaded as well.
facts.loading = true;
local has_archive = modulemanager.get_modules_for_host(host):contains("mam");

function facts.archives() return hosts[host].modules.mam ~= nil or (facts.loading and has_archive); end

-- A stanza id (XEP-0359) by the recipient's bare JID, in whatever spelling.
local function is_id_by(tag, bare)
	if tag.name ~= "stanza-id" or tag.attr.xmlns ~= xmlns_sid then return false; end
	local by = tag.attr.by;
	return by == bare or (by ~= nil and jid_prep(by) == bare);
end

-- The last of them, and how many there are. mod_mam puts its own last, and may leave forged ones
-- before it.
local function stanza_id_by(stanza, bare)
	local last, count = nil, 0;
	for _, tag in ipairs(stanza.tags) do
		if is_id_by(tag, bare) then last, count = tag, count + 1; end
	end
	return last, count;
end

-- Takes so many of them away, the first ones.
local function remove_ids(stanza, bare, count)
	return stanza:maptags(function (tag)
		if count == 0 or not is_id_by(tag, bare) then return tag; end
		count = count - 1;
	end);
end

function facts.drop_stanza_id(stanza, bare)
	if stanza_id_by(stanza, bare) then remove_ids(stanza, bare, math.huge); end
end

local function put_id(stanza, bare, key)
	remove_ids(stanza, bare, math.huge):add_direct_child(st.stanza("stanza-id", { xmlns = xmlns_sid, by = bare, id = OWN_ID..key }));
end

-- Gives a message that is held before the archive has seen it the id that lets a client know it
-- again. Where there is an archive, that has the first word, and seal() adds what is missing. One
-- that is there already is forged, for only the recipient's server may set it.
function facts.identify(stanza, bare, key)
	if not facts.archives() then put_id(stanza, bare, key); end
end

function facts.add_delay(stanza, stamp)
	if stanza:get_child("delay", xmlns_delay) then return; end
	stanza:add_direct_child(st.stanza("delay", { xmlns = xmlns_delay, from = host, stamp = stamp })
		:text("Offline Storage"));
end

-- The same with the <delay/> that a node sent beside the message, which is used up.
function facts.take_delay(stanza, delay)
	local stamp = delay and delay.attr.stamp;
	if not stamp or stanza:get_child("delay", xmlns_delay) then return; end
	for i = #delay, 1, -1 do delay[i] = nil; end
	delay.attr, delay.tags = { xmlns = xmlns_delay, from = host, stamp = stamp }, {};
	stanza:add_direct_child(delay:text("Offline Storage"):reset());
end

-- mod_smacks marks its copies with the time at which they were written. Takes that mark off
-- again and returns its time, which is the message's.
function facts.take_smacks_delay(stanza, bare)
	local last = stanza.tags[#stanza.tags];
	if not last or last.name ~= "delay" or last.attr.xmlns ~= xmlns_delay or last.attr.from ~= bare then return nil; end
	stanza:maptags(function (tag)
		if tag == last then return nil; end
		return tag;
	end);
	-- It claims to be mod_smacks' own, and may be the sender's all the same: only a time is taken.
	local stamp = last.attr.stamp;
	return stamp and stamp:match("^%d%d%d%d%-%d%d%-%d%dT%d%d:%d%d:%d%d%.?%d*Z$");
end

-- The message inside a carbon, and whether the user received or sent it.
function facts.carbon(stanza)
	for _, tag in ipairs(stanza.tags) do
		if tag.attr.xmlns == "urn:xmpp:carbons:2" and (tag.name == "received" or tag.name == "sent") then
			local forwarded = tag:get_child("forwarded", "urn:xmpp:forward:0");
			return tag.name, forwarded and forwarded:get_child("message", xmlns_client);
		end
	end
end

function facts.is_archive_result(stanza)
	for _, tag in ipairs(stanza.tags) do
		if tag.name == "result" and tag.attr.xmlns and tag.attr.xmlns:find("^urn:xmpp:mam:") then return true; end
	end
	return false;
end

-- Has the stanza more levels of elements than that? It counts as one itself.
function facts.deeper_than(stanza, levels)
	if levels == 0 then return true; end
	for _, tag in ipairs(stanza.tags) do
		if facts.deeper_than(tag, levels - 1) then return true; end
	end
	return false;
end

-- What could not come back from a node, or not be read by one. `bytes`: of the message.
function facts.too_large(stanza, bytes, max_stanza)
	return bytes + MAX_OVERHEAD > max_stanza or facts.deeper_than(stanza, MAX_DEPTH);
end

-- ------------------------------------------------------------------------------ bytes

facts.escape = st.xml_escape;

-- The message as it stands alone, with the namespace that it has in a client's stream.
function facts.serialise(stanza)
	local ns = stanza.attr.xmlns;
	stanza.attr.xmlns = xmlns_client;
	local xml = tostring(stanza);
	stanza.attr.xmlns = ns;
	return xml;
end

local function is_own_id(tag) return (tag.attr.id or ""):sub(1, #OWN_ID) == OWN_ID; end

-- Whether the recipient's archive has it.
function facts.is_archived(stanza, bare)
	local given = facts.archives() and stanza_id_by(stanza, bare);
	return given and not is_own_id(given) or false;
end

-- The message as it is stored, and whether the recipient's archive has it. It always has one stanza
-- id, the same each time it comes. The last one that is there is genuine where an archive is, for
-- mod_mam takes forged ones away from what it does not archive, and in what was held under this key
-- before (`seen`).
function facts.seal(stanza, bare, key, seen)
	local given, count = stanza_id_by(stanza, bare);
	local archives = facts.archives();
	if given and (archives or seen) then
		if count > 1 then stanza = remove_ids(st.clone(stanza), bare, count - 1); end
		return facts.serialise(stanza), archives and not is_own_id(given);
	elseif given or not stanza[1] then
		stanza = st.clone(stanza);
		put_id(stanza, bare, key);
		return facts.serialise(stanza), false;
	end
	local xml = facts.serialise(stanza);
	return xml:sub(1, -#"</message>" - 1).."<stanza-id xmlns='"..xmlns_sid.."' by='"..facts.escape(bare)
		.."' id='"..OWN_ID..facts.escape(key).."'/></message>", false;
end

-- Prosody's own tables have no xmlns for the client namespace, except below another namespace.
function facts.unqualify(stanza)
	if stanza.attr.xmlns == xmlns_client then
		stanza.attr.xmlns = nil;
		for _, tag in ipairs(stanza.tags) do facts.unqualify(tag); end
	end
	return stanza;
end

function facts.parse(xml)
	local stanza, err = parse_xml(xml);
	if not stanza then return nil, err; end
	return facts.unqualify(stanza);
end

return facts;
