-- Fails when a message with the body "faulty" is written to a client, the first time for each server.

local filters = require "util.filters";

local failed = false;

local function fail(stanza)
	if not failed and stanza.name == "message" and stanza:get_child_text("body") == "faulty" then
		failed = true;
		error("a filter that fails");
	end
	return stanza;
end

local function add(session) filters.add_filter(session, "stanzas/out", fail, 10); end

filters.add_filter_hook(add);
function module.unload() filters.remove_filter_hook(add); end
