-- What users ask about their stored messages (XEP-0013): each request is passed to the node, and
-- its answer to the session that asked, behind the messages that it shows.
--
-- A request ("request" below) is a table that lives until it is answered and the node has been
-- told what became of the messages it showed:
--   name               names it for the node, for ever: what it is shown comes under this name
--   seat, stanza       who asks, and what
--   state              waiting; asked: of the node; answering: the answer is in the session's line;
--                      over: answered, or nobody is there to be answered
--   barrier, since     what was undecided when it came; when that was
--   at                 when the node was heard of last
--   stream             of the link on which it was asked: answered there, or nowhere
--   shown, batches     whether it was shown anything; what of that the node does not know as taken
--   last, ended        the last batch that came; when the node was told that no more can be taken

local st = require "util.stanza";
local time_now = require "util.time".now;

local host = module.host;

local xmlns_offline = "http://jabber.org/protocol/offline";
local xmlns_forward = "urn:xmpp:forward:0";
local xmlns_stanzas = "urn:ietf:params:xml:ns:xmpp-stanzas";
local xmlns = "urn:amphora:intercept:1";

-- Requests that are not answered. One session's are passed on one at a time, so that what a client
-- removes is not removed before it was shown what it asked for earlier; the others wait. More than
-- this are refused with resource-constraint.
local USER_REQUESTS, HOST_REQUESTS = 8, 1000;
local REQUEST_BYTES = 64 * 1024; -- of a request; a thousand names fit
local MAX_DEPTH = 32; -- levels of elements in a request

return function (ctx)
	local facts, links, options, seats, queue = ctx.facts, ctx.links, ctx.options, ctx.seats, ctx.queue;
	local escape = facts.escape;
	local retrieve = {};

	local by_name = {};   -- requests that the node may still speak of
	local by_iq = {};     -- those that were asked, by the id of our request
	local asking = {};    -- seats with requests that are not answered
	local users = {};     -- bare JID -> number of those
	local total, next_name = 0, 0;
	local reporting = {}; -- requests of which something is to be repeated to the node

	-- -------------------------------------------------------------------- what the node is told

	local function tell(request, n, ended)
		reporting[request] = true;
		local link = links.of_stream(request.stream);
		if link then
			links.emit(link, ("<taken xmlns='urn:amphora:intercept:1' for='%s' session='%s' batch='%s' ids=''%s/>")
				:format(escape(request.seat.bare), escape(request.name), escape(n), ended and " ended='true'" or ""));
		end
	end

	-- A batch was acknowledged. Nothing is deleted for that, so it names no ids.
	function retrieve.taken(batch)
		local request = batch.request;
		request.at = time_now();
		if request.batches[batch.n] ~= batch or request.ended then return; end
		batch.at = request.at;
		tell(request, batch.n);
	end

	-- Nobody takes any more of it.
	local function tell_end(request)
		request.ended = time_now();
		request.batches = {};
		tell(request, request.last, true);
	end

	local function forget(request)
		if request.state ~= "over" or request.ended or next(request.batches) then return; end
		by_name[request.name], reporting[request] = nil, nil;
		local seat = request.seat;
		if seat.retrievals then
			seat.retrievals[request.name] = nil;
			if next(seat.retrievals) == nil then seat.retrievals = nil; end
		end
	end

	-- -------------------------------------------------------------------- answers

	local function leave_line(request)
		local seat = request.seat;
		for i, other in ipairs(seat.requests) do
			if other == request then
				table.remove(seat.requests, i);
				total = total - 1;
				local left = users[seat.bare] - 1;
				users[seat.bare] = left > 0 and left or nil;
				break;
			end
		end
		if not seat.requests[1] then asking[seat], seat.requests = nil, nil; end
		request.state = "over";
		forget(request);
	end

	-- The session has its answer, and may ask the next.
	function retrieve.written(request)
		if request.state ~= "answering" then return; end
		leave_line(request);
		ctx.schedule();
	end

	local function finish(request, reply)
		if request.iq then by_iq[request.iq] = nil; end
		request.state = "answering";
		if request.shown then
			seats.write(request.seat, { stanza = reply, reply = request });
		else
			request.seat.session.send(reply);
			retrieve.written(request);
		end
	end

	local function fail(request, condition, text)
		finish(request, st.error_reply(request.stanza, "wait", condition, text));
	end

	local function error_of(request, iq)
		local error = iq:get_child("error");
		local condition;
		for _, tag in ipairs(error and error.tags or {}) do
			if tag.attr.xmlns == xmlns_stanzas and tag.name ~= "text" then condition = tag.name; end
		end
		local text = error and error:get_child_text("text", xmlns_stanzas);
		return st.error_reply(request.stanza, error and error.attr.type or "cancel", condition or "internal-server-error", text);
	end

	-- A node's answer to one of our requests. False if it is none.
	function retrieve.answer(origin, stanza)
		local request = by_iq[stanza.attr.id];
		if not request or request.stream ~= origin then return false; end
		local element = stanza:get_child("retrieve", xmlns);
		local forwarded = element and element:get_child("forwarded", xmlns_forward);
		local iq = forwarded and forwarded:get_child("iq", "jabber:client");
		iq = iq and facts.unqualify(st.clone(iq));
		if stanza.attr.type == "error" then
			module:log("error", "The node refuses a request of %s for offline messages", request.seat.jid);
			finish(request, error_of(request, stanza));
		elseif not iq or iq.attr.type == "error" then
			finish(request, error_of(request, iq or stanza));
		else
			local reply = st.reply(request.stanza);
			reply.attr.from = request.seat.bare; -- as mod_disco answers for an account
			for _, child in ipairs(iq.tags) do reply:add_child(child); end
			finish(request, reply);
		end
		return true;
	end

	-- -------------------------------------------------------------------- messages that are shown

	local function is_offline(tag) return tag.name == "offline" and tag.attr.xmlns == xmlns_offline; end

	-- The message with its name; one that a sender wrote into it is taken out.
	local function name_message(message, id)
		message:maptags(function (tag)
			if is_offline(tag) then return nil; end
			return tag;
		end);
		message:add_direct_child(st.stanza("offline", { xmlns = xmlns_offline }):tag("item", { node = id }):up());
		return message;
	end

	function retrieve.hand_over(element, link)
		local name, n = element.attr.session, element.attr.batch;
		if not name or not n then
			module:log("warn", "A hand-over without session or batch was left out");
			return;
		end
		local request = by_name[name];
		if not request then
			links.emit(link, ("<taken xmlns='urn:amphora:intercept:1' for='' session='%s' batch='%s' ids='' ended='true'/>")
				:format(escape(name), escape(n)));
			return;
		end
		if request.batches[n] or request.stream ~= link.session then return; end
		request.last, request.at = n, time_now();
		local seat = request.seat;
		if request.state ~= "asked" or seat.over then
			tell_end(request);
			return;
		end
		local batch = { n = n, request = request, view = true, pending = 0 };
		request.batches[n], request.shown = batch, true;
		local entries = {};
		for item_element in element:childtags("item") do
			local id = item_element.attr.id;
			local message = id and seats.item_stanza(item_element);
			if not message then
				module:log("error", "Item %s for %s can't be read", id, seat.jid);
			elseif not (message.attr.from and facts.blocks(seat.username, message.attr.from)) then
				batch.pending = batch.pending + 1;
				entries[#entries + 1] = { stanza = name_message(message, id), item = { id = id, view = true, batches = { batch } } };
			end
		end
		if batch.pending == 0 then retrieve.taken(batch); end
		seats.write(seat, table.unpack(entries));
	end

	-- The node knows that a batch was taken, or that no more can be. False if it is none of ours.
	function retrieve.deleted(element, link)
		local request = by_name[element.attr.session];
		if not request then return false; end
		if request.stream ~= link.session then return true; end
		local n = element.attr.batch;
		local batch = request.batches[n];
		if request.ended then
			if n == request.last then request.ended = nil; end
		elseif batch and batch.at then
			request.batches[n] = nil;
		end
		forget(request);
		return true;
	end

	-- -------------------------------------------------------------------- requests

	local function ask(request, link)
		request.state, request.at, request.stream = "asked", time_now(), link.session;
		request.iq = "amphora-retrieve-"..request.name;
		by_iq[request.iq] = request;
		links.send(link, ("<iq type='get' id='%s' from='%s' to='%s'><retrieve xmlns='%s' session='%s' jid='%s'><forwarded xmlns='%s'>")
			:format(escape(request.iq), escape(host), escape(link.component), xmlns, escape(request.name),
				escape(request.seat.jid), xmlns_forward)
			..facts.serialise(request.stanza).."</forwarded></retrieve></iq>");
	end

	-- What was on its way into the storage when the request came is part of it. A third of the time
	-- that the node has is waited for that.
	local function may_ask(request, now)
		return queue.settled(request.seat.bare, request.barrier) or now - request.since >= options.retrieve_timeout / 3;
	end

	function retrieve.pump()
		local now = time_now();
		for seat in pairs(asking) do
			local first = seat.requests[1];
			local link = links.of(seat.bare);
			if link and first.state == "waiting" and may_ask(first, now) then ask(first, link); end
		end
	end

	local function refuse(event, type, condition, text)
		event.origin.send(st.error_reply(event.stanza, type, condition, text));
		return true;
	end

	local function take(event)
		local stanza, seat = event.stanza, seats.of(event.origin);
		if not seat or not links.up then
			return refuse(event, "wait", "service-unavailable", "The storage is not there now");
		elseif facts.deeper_than(stanza, MAX_DEPTH) or #tostring(stanza) > REQUEST_BYTES then
			return refuse(event, "modify", "policy-violation", "The request is too large: ask for fewer messages at once");
		elseif (users[seat.bare] or 0) >= USER_REQUESTS or total >= HOST_REQUESTS then
			return refuse(event, "wait", "resource-constraint", "Too many requests for offline messages are under way");
		end
		next_name = next_name + 1;
		local request = {
			name = ("%s-r%d"):format(ctx.token, next_name), seat = seat, stanza = st.clone(stanza), state = "waiting";
			barrier = queue.seq(), since = time_now(), batches = {}, last = "0";
		};
		by_name[request.name] = request;
		seat.retrievals = seat.retrievals or {};
		seat.retrievals[request.name] = request;
		seat.requests = seat.requests or {};
		table.insert(seat.requests, request);
		asking[seat] = true;
		users[seat.bare], total = (users[seat.bare] or 0) + 1, total + 1;
		ctx.schedule();
		return true;
	end

	-- A request about an account, by somebody.
	local function request_came(event, fetches)
		local origin, stanza = event.origin, event.stanza;
		if stanza.attr.to or origin.type ~= "c2s" or origin.host ~= host then
			return refuse(event, "auth", "forbidden", "Offline messages are shown to their recipient alone");
		end
		local seat = seats.of(origin);
		if seat and fetches then seats.fetches(seat); end
		return take(event);
	end

	local function offline_request(event)
		local offline = event.stanza:get_child("offline", xmlns_offline);
		return request_came(event, offline and offline:get_child("fetch", xmlns_offline) ~= nil);
	end

	local function disco_request(event)
		if event.stanza.tags[1].attr.node == xmlns_offline then return request_came(event, true); end
	end

	-- Before mod_disco, which would ask others (and mod_pep) for the node.
	module:hook("iq-get/bare/http://jabber.org/protocol/disco#info:query", disco_request, 10);
	module:hook("iq-get/bare/http://jabber.org/protocol/disco#items:query", disco_request, 10);
	module:hook("iq-get/bare/"..xmlns_offline..":offline", offline_request);
	module:hook("iq-set/bare/"..xmlns_offline..":offline", offline_request);

	-- -------------------------------------------------------------------- ends

	function retrieve.session_ended(seat)
		for _, request in ipairs({ table.unpack(seat.requests or {}) }) do
			local asked = request.state == "asked";
			if request.iq then by_iq[request.iq] = nil; end
			if asked then tell_end(request); end
			leave_line(request);
		end
		for _, request in pairs(seat.retrievals or {}) do
			request.batches = {}; -- of what was answered the node keeps nothing
			forget(request);
		end
	end

	-- A node forgets with its link what it was asked. What it has shown is still written. What waits
	-- is asked of another, if one is there.
	local function give_up(is_lost)
		local seats_asking = {};
		for seat in pairs(asking) do seats_asking[#seats_asking + 1] = seat; end
		for _, seat in ipairs(seats_asking) do
			for _, request in ipairs({ table.unpack(seat.requests) }) do
				if (request.state == "asked" and is_lost(request)) or (request.state == "waiting" and not links.up) then
					fail(request, "service-unavailable", "The storage went away, ask again");
				end
			end
		end
		for _, request in pairs(by_name) do
			if request.stream and is_lost(request) then
				request.batches, request.ended = {}, nil;
				forget(request);
			end
		end
	end

	function retrieve.link_lost(stream)
		give_up(function (request) return request.stream == stream; end);
	end

	local function is_pending(request)
		for _, batch in pairs(request.batches) do
			if batch.pending > 0 then return true; end
		end
		return false;
	end

	function retrieve.sweep(now)
		for seat in pairs(asking) do
			local first = seat.requests[1];
			if first.state == "asked" then
				if is_pending(first) then
					first.at = now; -- it waits for the client
				elseif now - first.at >= options.retrieve_timeout then
					module:log("warn", "%s: no answer about offline messages within %g s", seat.jid, options.retrieve_timeout);
					tell_end(first);
					fail(first, "service-unavailable", "The storage does not answer, ask again");
				end
			end
		end
		if not links.up then return; end
		for request in pairs(reporting) do
			local any = request.ended ~= nil;
			if any and now - request.ended >= options.repeat_after then tell_end(request); end
			for _, batch in pairs(request.batches) do
				if batch.at then
					any = true;
					if now - batch.at >= options.repeat_after then retrieve.taken(batch); end
				end
			end
			if not any then reporting[request] = nil; end
		end
	end

	-- -------------------------------------------------------------------- reload, unload

	local saved;
	function retrieve.save()
		saved = { by_name = by_name, by_iq = by_iq, asking = asking, users = users, total = total, reporting = reporting };
		return saved;
	end

	-- After seats.adopt(). The names of this start go on to differ, for they have its token.
	function retrieve.adopt(state)
		if not state then return; end
		state.adopted = true;
		by_name, by_iq, asking, users = state.by_name, state.by_iq, state.asking, state.users;
		total, reporting = state.total, state.reporting;
		for seat in pairs(asking) do
			-- What was undecided is in the spool now.
			for _, request in ipairs(seat.requests) do request.barrier = queue.seq(); end
		end
	end

	-- Once it is known which links outlived a reload.
	function retrieve.find_links()
		give_up(function (request) return not links.of_stream(request.stream); end);
	end

	function retrieve.unload()
		local function let_go()
			if saved and saved.adopted then return; end
			for seat in pairs(asking) do
				for _, request in ipairs(seat.requests) do
					seat.session.send(st.error_reply(request.stanza, "wait", "service-unavailable", "The storage went away"));
				end
			end
		end
		if saved then module:add_timer(0, let_go); else let_go(); end
	end

	return retrieve;
end
