-- A component that sends each message back, wrapped, to who sent it.

local st = require "util.stanza";

local function mirror(event)
	local stanza = event.stanza;
	local copy = st.clone(stanza);
	copy.attr.xmlns = "jabber:client";
	module:send(st.message({ from = stanza.attr.to, to = stanza.attr.from, id = stanza.attr.id })
		:tag("forwarded", { xmlns = "urn:xmpp:forward:0" }):add_child(copy));
	return true;
end

for _, kind in ipairs { "host", "bare", "full" } do module:hook("message/"..kind, mirror); end
