-- Which other servers support rules: asked by service discovery (XEP-0030), and remembered
-- (XEP-0079, sections 2.1.1 and 2.2.4).

local st = require "util.stanza";
local new_cache = require "util.cache".new;
local hex = require "util.hex".to;
local random_bytes = require "util.random".bytes;
local time_now = require "util.time".now;
local xpcall = require "util.xpcall".xpcall;

local host = module.host;

local xmlns_amp = "http://jabber.org/protocol/amp";
local xmlns_info = "http://jabber.org/protocol/disco#info";

-- Remembered at most. The one that was longest not needed is forgotten, and asked again.
local DOMAINS = 1024;
-- Under way at once; further domains wait for their turn. module:send_iq keeps track of 256, and
-- would give the oldest up.
local QUERIES = 128;

local function lists_amp(answer)
	local query = answer.attr.type == "result" and answer:get_child("query", xmlns_info);
	if not query then return false; end
	for feature in query:childtags("feature") do
		if feature.attr.var == xmlns_amp then return true; end
	end
	return false;
end

return function (ctx)
	local options = ctx.options;
	local servers = {};

	local known = new_cache(DOMAINS); -- domain -> { supports, ends: when that is to be asked again }
	local asking = {}; -- domain -> who waits for the answer, in order
	local turn = ctx.new_fifo(); -- domains that are not asked yet
	local under_way = 0;

	local start;

	local function start_next()
		while under_way < QUERIES and not turn:empty() do start(turn:pop()); end
	end

	-- A server that does not list the feature is asked again soon, whatever the reason: its node
	-- may only be away for a moment.
	local function learn(domain, supports)
		local lasts = supports and options.disco_cache or options.disco_retry;
		known:set(domain, { supports = supports, ends = time_now() + lasts });
		local waiting = asking[domain];
		asking[domain] = nil;
		under_way = under_way - 1;
		if not turn:empty() then module:add_timer(0, start_next); end
		for _, tell in ipairs(waiting) do
			local ok, err = xpcall(tell, debug.traceback, supports);
			if not ok then module:log("error", "While it became known what %s supports: %s", domain, err); end
		end
	end

	function start(domain)
		under_way = under_way + 1;
		local query = st.iq({ type = "get", id = "amphora-disco-"..hex(random_bytes(9)), from = host, to = domain })
			:query(xmlns_info);
		-- An answer counts only with that id and from that domain.
		module:send_iq(query, nil, options.disco_timeout):next(function (event)
			local supports = lists_amp(event.stanza);
			module:log("debug", "%s %s rules", domain, supports and "supports" or "does not support");
			learn(domain, supports);
		end, function (err)
			module:log("debug", "%s does not say what it supports: %s", domain, err);
			learn(domain, false);
		end);
	end

	-- Calls tell(true) if the server of that domain supports rules, and tell(false) if it is not
	-- known to: now, or when it is known. A domain is asked once, whoever waits.
	function servers.support_amp(domain, tell)
		local what = known:get(domain);
		if what and time_now() < what.ends then
			known:set(domain, what); -- it was needed
			return tell(what.supports);
		end
		if asking[domain] then
			table.insert(asking[domain], tell);
			return;
		end
		asking[domain] = { tell };
		if under_way < QUERIES then start(domain); else turn:push(domain); end
	end

	return servers;
end
