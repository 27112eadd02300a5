-- prosodyctl mod_amphora unspool HOST: moves what is in the spool to where mod_offline keeps its
-- messages, for a server that goes on without Amphora. Prosody must not be running.

local datamanager = require "util.datamanager";
local datetime = require "util.datetime";
local storagemanager = require "core.storagemanager";

local function unspool(host)
	local facts = module:require "amphora_facts";
	local path = datamanager.getpath(nil, host, "amphora_spool", "log", true);
	local spool, err = module:require "amphora_spool".open(path, function (_, ...) print((...):format(select(2, ...))); end);
	if not spool then
		print("The spool can't be opened: "..tostring(err));
		return 1;
	end
	storagemanager.initialize_host(host);
	local store = storagemanager.open(host, "offline", "archive");
	local moved, left = 0, 0;
	local users = {};
	for bare in pairs(spool.users) do users[#users + 1] = bare; end
	for _, bare in ipairs(users) do
		local username = bare:sub(1, -#host - 2);
		local record, handle = spool:load(bare);
		while record do
			local stanza = facts.parse(record.xml);
			local ok;
			if stanza then
				ok, err = store:append(username, nil, stanza, datetime.parse(record.stamp) or os.time(), "");
			else
				ok, err = nil, "it can't be read";
			end
			if ok then
				spool:delete(bare, handle);
				moved = moved + 1;
			else
				print(("A message for %s stays in the spool: %s"):format(bare, tostring(err)));
				left = left + 1;
			end
			record, handle = spool:load(bare);
		end
	end
	spool:tidy();
	spool:close();
	print(("%d messages moved to the offline messages of %s, %d stay in the spool"):format(moved, host, left));
	return left == 0 and 0 or 1;
end

return function (arg)
	if arg[1] == "unspool" and prosody.hosts[arg[2]] then return unspool(arg[2]); end
	print("Usage: prosodyctl mod_amphora unspool HOST");
	return 1;
end
