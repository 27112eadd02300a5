-- Gives each message for the user `relay` to the interceptor's relay(), addressed anew: from that
-- user to the address in its <relay xmlns='urn:example:relay' to=''/>.

local st = require "util.stanza";

local function edge()
	local unload = prosody.hosts[module.host].modules.amphora.module.unload;
	for i = 1, 20 do
		local name, value = debug.getupvalue(unload, i);
		if name == "edge" then return value; end
	end
end

module:hook("message/bare", function (event)
	local order = event.stanza:get_child("relay", "urn:example:relay");
	if not order then return; end
	local stanza = st.clone(event.stanza);
	stanza.attr.from, stanza.attr.to = stanza.attr.to, order.attr.to;
	edge().relay(stanza, order.attr.silent == "true");
	return true;
end, 10);
