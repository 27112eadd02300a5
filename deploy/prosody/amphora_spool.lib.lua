-- The spool: what the interceptor keeps when no node can take it.
--
-- One file per host, one record per line, each with a checksum, only ever appended to. A store
-- of Prosody's own is not used, because its files are Lua programs: one torn line and the whole
-- list is unreadable. Here a torn or damaged line costs that line.
--
--   <sum> A <bare> <key> <stage> <ord> <stamp> <archived> <from> <addressed> <xml>    a message
--   <sum> D <offset>                                                                  it is settled
--   <sum> R <bare>                                                                    an account was removed
--   <sum> X <bare>                                                                    ... and a node knows it
--
-- In memory there is one number per message, the offset of its line. Plain Lua has no fsync:
-- what was appended survives the end of Prosody, not a power cut in the seconds after.

local sha1 = require "util.hashes".sha1;
local io_open, os_rename = io.open, os.rename;
local t_concat = table.concat;

local COMPACT_BYTES = 8 * 1024 * 1024; -- a smaller file is never worth copying

local escapes = { ["\\"] = "\\\\", ["\t"] = "\\t", ["\n"] = "\\n", ["\r"] = "\\r" };
local unescapes = { ["\\\\"] = "\\", ["\\t"] = "\t", ["\\n"] = "\n", ["\\r"] = "\r" };
local function escape(s) return (s:gsub("[\\\t\n\r]", escapes)); end
local function unescape(s) return (s:gsub("\\.", unescapes)); end

local function checksum(body) return sha1(body, true):sub(1, 12); end

local function line_of(...)
	local body = t_concat({ ... }, "\t");
	return checksum(body).."\t"..body.."\n";
end

-- The fields of a line, or nil if it is torn or damaged.
local function fields_of(line)
	local sum, body = line:match("^(%x+)\t(.*)\n$");
	if not sum or checksum(body) ~= sum then return nil; end
	local fields = {};
	for field in (body.."\t"):gmatch("([^\t]*)\t") do fields[#fields + 1] = field; end
	return fields;
end

local spool = {};
local spool_mt = { __index = spool };

-- Reads the file once; after that only single lines are read.
local function open(path, log)
	local self = setmetatable({
		path = path, log = log;
		users = {};      -- bare JID -> { first, next, last, [index] = offset or false }
		removals = {};   -- bare JID -> true: removed accounts that no node has confirmed yet
		size = 0, live = 0, dead = 0; -- bytes of the file, messages in it, lines of no use
		max_ord = 0;
		torn = false;
	}, spool_mt);
	local ok, err = self:scan();
	if not ok then return nil, err; end
	return self;
end

function spool:scan()
	local file = io_open(self.path, "rb");
	local bad = 0;
	if file then
		local where = {}; -- offset -> { queue, index, length }
		local offset = 0;
		for line in file:lines("L") do
			local fields = fields_of(line);
			local kind = fields and fields[1];
			if kind == "A" and fields[10] then
				local q, index = self:slot(unescape(fields[2]), offset);
				where[offset] = { q, index };
				self.live = self.live + 1;
				local ord = tonumber(fields[5]);
				if ord and ord > self.max_ord then self.max_ord = ord; end
			elseif kind == "D" then
				local at = where[tonumber(fields[2])];
				if at then
					where[tonumber(fields[2])] = nil;
					at[1][at[2]] = false;
					self.live, self.dead = self.live - 1, self.dead + 2;
				end
			elseif kind == "R" then
				self.removals[unescape(fields[2])] = true;
			elseif kind == "X" then
				self.removals[unescape(fields[2])] = nil;
			elseif line ~= "\n" then
				bad = bad + 1;
				self:set_aside(line);
			end
			offset = offset + #line;
			self.torn = line:sub(-1) ~= "\n";
		end
		self.size = offset;
		file:close();
	end
	if bad > 0 then
		self.log("warn", "%s: %d torn or damaged lines were left out and copied to %s.bad", self.path, bad, self.path);
	end
	for bare, q in pairs(self.users) do
		self:settle(bare, q);
	end
	if self.live == 0 and next(self.removals) == nil and self.size > 0 then
		return self:truncate();
	end
	return self:open_files();
end

function spool:open_files()
	local err;
	self.writer, err = io_open(self.path, "ab");
	if not self.writer then return nil, err; end
	self.writer:setvbuf("full", 65536);
	self.reader, err = io_open(self.path, "rb");
	if not self.reader then return nil, err; end
	return true;
end

-- A line that can't be read is kept beside the file: someone may want to look at it.
function spool:set_aside(line)
	local file = io_open(self.path..".bad", "ab");
	if file then
		file:write(line, line:sub(-1) == "\n" and "" or "\n");
		file:close();
	end
end

function spool:slot(bare, offset)
	local q = self.users[bare];
	if not q then
		q = { first = 1, next = 1, last = 0 };
		self.users[bare] = q;
	end
	q.last = q.last + 1;
	q[q.last] = offset;
	return q, q.last;
end

-- Forgets what is settled at the front of a queue, and an empty queue.
function spool:settle(bare, q)
	while q.first <= q.last and q[q.first] == false do
		q[q.first] = nil;
		q.first = q.first + 1;
	end
	if q.next < q.first then q.next = q.first; end
	if q.first > q.last then self.users[bare] = nil; end
end

function spool:write(line)
	if self.torn then line = "\n"..line; end
	local ok, err = self.writer:write(line);
	if not ok then
		self.torn = true;
		self.size = self.writer:seek("end") or self.size;
		return nil, err;
	end
	local offset = self.size + (self.torn and 1 or 0);
	self.torn, self.dirty = false, true;
	self.size = self.size + #line;
	return offset;
end

-- What was written before is with the operating system when this returns.
function spool:flush()
	if not self.dirty then return true; end
	self.dirty = false;
	local ok, err = self.writer:flush();
	if not ok then
		self.torn = true;
		self.log("error", "%s: %s", self.path, err);
	end
	return ok, err;
end

-- Appends a message to its user's queue. The caller flushes.
function spool:append(bare, m)
	local line = line_of("A", escape(bare), escape(m.key), m.stage, ("%.6f"):format(m.ord), m.stamp,
		m.archived and "1" or "0", escape(m.from), escape(m.addressed), escape(m.xml));
	local offset, err = self:write(line);
	if not offset then
		self.log("error", "%s: %s", self.path, err);
		return nil, err;
	end
	self:slot(bare, offset);
	self.live = self.live + 1;
	return true;
end

function spool:read(offset)
	self:flush();
	if not self.reader:seek("set", offset) then return nil; end
	local line = self.reader:read("L");
	local fields = line and fields_of(line);
	if not fields or fields[1] ~= "A" then return nil; end
	return {
		key = unescape(fields[3]), stage = fields[4], ord = tonumber(fields[5]), stamp = fields[6];
		archived = fields[7] == "1", from = unescape(fields[8]), addressed = unescape(fields[9]);
		xml = unescape(fields[10]);
	};
end

-- The user's oldest message that is not in memory yet, and its index for delete().
function spool:load(bare)
	local q = self.users[bare];
	while q and q.next <= q.last do
		local index = q.next;
		q.next = index + 1;
		if q[index] then
			local m = self:read(q[index]);
			if m then return m, index; end
			self.log("error", "%s: the message at offset %d can't be read, it is left out", self.path, q[index]);
			self:delete(bare, index);
			q = self.users[bare];
		end
	end
end

-- All of the user's messages count as not in memory again.
function spool:unload(bare)
	local q = self.users[bare];
	if q then q.next = q.first; end
end

-- Are there messages that are not in memory?
function spool:pending(bare)
	local q = self.users[bare];
	return q ~= nil and q.next <= q.last;
end

function spool:delete(bare, index)
	local q = self.users[bare];
	if not q or not q[index] then return; end
	self:write(line_of("D", ("%d"):format(q[index])));
	q[index] = false;
	self.live, self.dead = self.live - 1, self.dead + 2;
	self:settle(bare, q);
end

function spool:delete_user(bare)
	local q = self.users[bare];
	if not q then return 0; end
	local n = 0;
	for index = q.first, q.last do
		if q[index] then
			self:delete(bare, index);
			n = n + 1;
		end
	end
	return n;
end

function spool:add_removal(bare)
	self.removals[bare] = true;
	self:write(line_of("R", escape(bare)));
	return self:flush();
end

function spool:remove_removal(bare)
	self.removals[bare] = nil;
	self:write(line_of("X", escape(bare)));
	return self:flush();
end

-- Keys of a user's messages: the import asks, so that a repeated import adds nothing twice.
function spool:keys(bare)
	local keys, q = {}, self.users[bare];
	if q then
		for index = q.first, q.last do
			local m = q[index] and self:read(q[index]);
			if m then keys[m.key] = true; end
		end
	end
	return keys;
end

function spool:truncate()
	self:close();
	local file, err = io_open(self.path, "wb");
	if not file then return nil, err; end
	file:close();
	self.size, self.dead, self.torn = 0, 0, false;
	return self:open_files();
end

-- Called now and then: gives back the space of settled messages.
function spool:tidy()
	if self.live == 0 and next(self.removals) == nil then
		if self.size > 0 then return self:truncate(); end
	elseif self.size > COMPACT_BYTES and self.dead > self.live then
		return self:compact();
	end
	return true;
end

-- Copies what is live into a new file that replaces the old one. Indexes stay, offsets change.
function spool:compact()
	local ok, err = self:flush();
	if not ok then return nil, err; end
	local copy = self.path.."~";
	local file;
	file, err = io_open(copy, "wb");
	if not file then return nil, err; end
	local size, moved = 0, {};
	local function put(line)
		ok, err = file:write(line);
		size = size + #line;
		return ok;
	end
	for bare in pairs(self.removals) do
		if not put(line_of("R", escape(bare))) then break; end
	end
	for bare, q in pairs(self.users) do
		for index = q.first, q.last do
			if q[index] and ok then
				self.reader:seek("set", q[index]);
				local line = self.reader:read("L");
				if line and fields_of(line) then
					moved[#moved + 1] = { bare, index, size };
					put(line);
				else
					moved[#moved + 1] = { bare, index, false };
				end
			end
		end
	end
	if ok then ok, err = file:close(); else file:close(); end
	if ok then ok, err = os_rename(copy, self.path); end
	if not ok then
		self.log("error", "%s: can't be compacted: %s", self.path, err);
		return nil, err;
	end
	for _, move in ipairs(moved) do
		self.users[move[1]][move[2]] = move[3];
		if not move[3] then self.live = self.live - 1; end
	end
	for bare, q in pairs(self.users) do self:settle(bare, q); end
	self:close();
	self.size, self.dead, self.torn = size, 0, false;
	return self:open_files();
end

function spool:close()
	if self.writer then self.writer:close(); end
	if self.reader then self.reader:close(); end
	self.writer, self.reader = nil, nil;
end

return { open = open };
