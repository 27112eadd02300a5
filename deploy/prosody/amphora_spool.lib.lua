-- The spool: what the server has accepted and no node has taken yet. A message is in it from before
-- the server goes on until its verdict, so that the server may be killed; where no node is there for
-- long, it stays in it and leaves memory.
--
-- One file per host, one record per line, each with a checksum, only ever appended to. A store
-- of Prosody's own is not used, because its files are Lua programs: one torn line and the whole
-- list is unreadable. Here a torn or damaged line costs that line.
--
--   <sum> A <bare> <key> <stage> <ord> <stamp> <archived> <from> <addressed> <xml>    a message
--   <sum> D <offset> ...                                                              they are settled
--   <sum> R <bare> <stamp>                                                            an account was removed
--   <sum> X <bare>                                                                    ... and a node knows it
--
-- In memory there are two numbers per message: the offset of its line, and its place in the order
-- of arrival (ord), which is the order of its user's queue wherever its line is. A message that is
-- in the spool and in memory has a handle as well. A message is given to the operating system at
-- once, so a full disk is noticed before the message is let go, and nobody hears that it was accepted
-- before; what is settled is noted once in a turn of the event loop, before the socket of anybody is
-- written to. Plain Lua has no fsync: what was appended survives the end of Prosody, not a power cut
-- in the seconds after.

local sha1 = require "util.hashes".sha1;
local io_open, os_rename = io.open, os.rename;
local t_concat, t_sort = table.concat, table.sort;

local COMPACT_BYTES = 8 * 1024 * 1024; -- a smaller file is never worth copying
local TORN = "~\n"; -- the end of a line that could not be written whole

local escapes = { ["\\"] = "\\\\", ["\t"] = "\\t", ["\n"] = "\\n", ["\r"] = "\\r" };
local unescapes = { ["\\\\"] = "\\", ["\\t"] = "\t", ["\\n"] = "\n", ["\\r"] = "\r" };
local function has(s, byte) return s:find(byte, 1, true) ~= nil; end
local function escape(s) -- four plain searches cost less than a set of bytes, and hardly ever find one
	if not (has(s, "\n") or has(s, "\\") or has(s, "\t") or has(s, "\r")) then return s; end
	return (s:gsub("[\\\t\n\r]", escapes));
end
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
		users = {};      -- bare JID -> { first, next, last, ords, [index] = offset or false }
		handles = {};    -- offset -> handle of a message that is in memory too
		removals = {};   -- bare JID -> time of the removal of accounts that no node has confirmed yet
		owed = {};       -- lines that are needed only after a restart, and are not written yet
		settled = {};    -- offsets of messages that are settled, and whose line is not written yet
		size = 0, live = 0, dead = 0; -- bytes of the file, messages in it, lines of no use
		max_ord = 0;
		torn = false, failing = false;
	}, spool_mt);
	local ok, err = self:scan();
	if not ok then return nil, err; end
	return self;
end

function spool:scan()
	local file = io_open(self.path, "rb");
	local bad = 0;
	if file then
		local where = {}; -- offset -> { bare, offset, ord }
		local offset = 0;
		for line in file:lines("L") do
			local fields = fields_of(line);
			local kind = fields and fields[1];
			if kind == "A" and fields[10] then
				local ord = tonumber(fields[5]) or self.max_ord + 1;
				where[offset] = { unescape(fields[2]), offset, ord };
				if ord > self.max_ord then self.max_ord = ord; end
			elseif kind == "D" then
				for i = 2, #fields do
					local settled = tonumber(fields[i]);
					if settled and where[settled] then
						where[settled] = nil;
						self.dead = self.dead + 2;
					end
				end
			elseif kind == "R" and fields[3] then
				self.removals[unescape(fields[2])] = fields[3];
			elseif kind == "X" then
				self.removals[unescape(fields[2])] = nil;
			elseif line ~= TORN then
				bad = bad + 1;
				self:set_aside(line);
			end
			offset = offset + #line;
			self.torn = line:sub(-1) ~= "\n";
		end
		self.size = offset;
		file:close();
		local list = {};
		for _, at in pairs(where) do list[#list + 1] = at; end
		t_sort(list, function (a, b)
			if a[3] ~= b[3] then return a[3] < b[3]; end
			return a[2] < b[2];
		end);
		for _, at in ipairs(list) do self:insert(at[1], at[2], at[3]); end
		self.live = #list;
	end
	if bad > 0 then
		self.log("warn", "%s: %d torn or damaged lines were left out and copied to %s.bad", self.path, bad, self.path);
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
	self.writer:setvbuf("no");
	self.reader, err = io_open(self.path, "rb");
	if not self.reader then return nil, err; end
	return true;
end

local function close_files(self)
	if self.writer then self.writer:close(); end
	if self.reader then self.reader:close(); end
	self.writer, self.reader = nil, nil;
end

-- A line that can't be read is kept beside the file: someone may want to look at it.
function spool:set_aside(line)
	local file = io_open(self.path..".bad", "ab");
	if file then
		file:write(line, line:sub(-1) == "\n" and "" or "\n");
		file:close();
	end
end

-- ------------------------------------------------------------------------------ lines

-- Writes whole lines and returns the offset of the first. What a write that failed left of its
-- line is made unreadable by the next one, even if only its end is missing.
function spool:write(lines)
	local before = self.torn and TORN or "";
	local ok, err = nil, "the file could not be opened";
	if self.writer then ok, err = self.writer:write(before, lines); end
	if not ok then
		if not self.failing then self.log("error", "%s can't be written: %s", self.path, err); end
		self.failing, self.torn = true, true;
		self.size = self.writer and self.writer:seek("end") or self.size;
		return nil, err;
	end
	if self.failing then self.log("info", "%s can be written again", self.path); end
	local offset = self.size + #before;
	self.failing, self.torn = false, false;
	self.size = offset + #lines;
	return offset;
end

-- Lines that change nothing before a restart: if they can't be written now, then later.
local function write_owed(self)
	local lines = t_concat(self.owed);
	if self.settled[1] then lines = lines..line_of("D", t_concat(self.settled, "\t")); end
	if lines ~= "" and self:write(lines) then self.owed, self.settled = {}, {}; end
end

local function note(self, line)
	self.owed[#self.owed + 1] = line;
	if not self.failing then write_owed(self); end
end

local function note_settled(self, offset) self.settled[#self.settled + 1] = ("%d"):format(offset); end

-- Called at the end of a turn of the event loop.
function spool:pay()
	if self.settled[1] and not self.failing then write_owed(self); end
end

local function message_line(bare, m)
	return line_of("A", escape(bare), escape(m.key), m.stage, ("%.6f"):format(m.ord), escape(m.stamp),
		m.archived and "1" or "0", escape(m.from), escape(m.addressed), escape(m.xml));
end

-- ------------------------------------------------------------------------------ queues

-- Puts an offset into its user's queue, by ord. Almost always that is the end.
function spool:insert(bare, offset, ord)
	local q = self.users[bare];
	if not q then
		q = { first = 1, next = 1, last = 0, ords = {} };
		self.users[bare] = q;
	end
	local ords, at = q.ords, q.last + 1;
	while at > q.first and ords[at - 1] > ord do
		q[at], ords[at] = q[at - 1], ords[at - 1];
		at = at - 1;
	end
	q[at], ords[at] = offset, ord;
	q.last = q.last + 1;
	if at < q.next then q.next = at; end
end

-- Where in its queue the message of a handle is.
local function index_of(q, handle)
	local low, high, ord = q.first, q.last, handle.ord;
	while low < high do
		local middle = math.floor((low + high) / 2);
		if q.ords[middle] < ord then low = middle + 1; else high = middle; end
	end
	while low <= q.last and q.ords[low] == ord do
		if q[low] == handle.offset then return low; end
		low = low + 1;
	end
end

-- Forgets what is settled at the front of a queue, and an empty queue.
function spool:settle(bare, q)
	while q.first <= q.last and q[q.first] == false do
		q[q.first], q.ords[q.first] = nil, nil;
		q.first = q.first + 1;
	end
	if q.next < q.first then q.next = q.first; end
	if q.first > q.last then self.users[bare] = nil; end
end

-- Appends a message and returns its handle: it counts as in memory. Nil if it can't be written.
function spool:append(bare, m)
	local offset, err = self:write(message_line(bare, m));
	if not offset then return nil, err; end
	local handle = { offset = offset, ord = m.ord };
	self.handles[offset] = handle;
	self:insert(bare, offset, m.ord);
	self.live = self.live + 1;
	return handle;
end

-- The message is at another stage by now.
function spool:replace(bare, handle, m)
	local q = self.users[bare];
	local index = q and index_of(q, handle);
	if not index then return; end
	local offset = self:write(message_line(bare, m)..line_of("D", ("%d"):format(handle.offset)));
	if not offset then return; end -- then it is asked about once more after a restart
	self.handles[handle.offset], self.handles[offset] = nil, handle;
	q[index], handle.offset = offset, offset;
	self.dead = self.dead + 2;
end

-- The message is no more in memory: from now on load() gives it.
function spool:release(bare, handle)
	local q = self.users[bare];
	local index = q and index_of(q, handle);
	if not index then return; end
	self.handles[handle.offset] = nil;
	if index < q.next then q.next = index; end
end

-- The message of a line; or nil, and why it could not be read if that may be otherwise later.
function spool:read(offset)
	local err;
	if not self.reader then
		self.reader, err = io.open(self.path, "rb");
		if not self.reader then return nil, err; end
	end
	local place, line;
	place, err = self.reader:seek("set", offset);
	if not place then return nil, err; end
	line, err = self.reader:read("L");
	if err then return nil, err; end
	local fields = line and fields_of(line);
	if not fields or fields[1] ~= "A" then return nil; end
	return {
		key = unescape(fields[3]), stage = fields[4], ord = tonumber(fields[5]), stamp = unescape(fields[6]);
		archived = fields[7] == "1", from = unescape(fields[8]), addressed = unescape(fields[9]);
		xml = unescape(fields[10]);
	};
end

-- How many messages are not in memory?
function spool:waiting()
	local n = self.live;
	for _ in pairs(self.handles) do n = n - 1; end
	return n;
end

-- Are there messages that are not in memory (and before that place in the order)?
function spool:pending(bare, ord)
	local q = self.users[bare];
	if not q then return false; end
	while q.next <= q.last and (not q[q.next] or self.handles[q[q.next]]) do q.next = q.next + 1; end
	return q.next <= q.last and (ord == nil or q.ords[q.next] < ord);
end

-- The user's oldest message that is not in memory yet, and its handle.
function spool:load(bare)
	while self:pending(bare) do
		local q = self.users[bare];
		local handle = { offset = q[q.next], ord = q.ords[q.next] };
		self.handles[handle.offset] = handle;
		local m, err = self:read(handle.offset);
		if m then
			m.ord = handle.ord;
			return m, handle;
		elseif err then
			self.log("error", "%s can't be read, its messages stay in it: %s", self.path, err);
			self.handles[handle.offset] = nil;
			return nil;
		end
		self.log("error", "%s: the message at offset %d is damaged, it is left out", self.path, handle.offset);
		self:delete(bare, handle);
	end
end

function spool:delete(bare, handle)
	local q = self.users[bare];
	local index = q and index_of(q, handle);
	if not index then return; end
	note_settled(self, handle.offset);
	self.handles[handle.offset] = nil;
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
			note_settled(self, q[index]);
			self.handles[q[index]] = nil;
			n = n + 1;
		end
	end
	self.users[bare] = nil;
	self.live, self.dead = self.live - n, self.dead + 2 * n;
	self:pay();
	return n;
end

function spool:add_removal(bare, stamp)
	self.removals[bare] = stamp;
	note(self, line_of("R", escape(bare), stamp));
end

function spool:remove_removal(bare)
	self.removals[bare] = nil;
	note(self, line_of("X", escape(bare)));
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

-- ------------------------------------------------------------------------------ the file

function spool:truncate()
	close_files(self);
	local file, err = io_open(self.path, "wb");
	if not file then return nil, err; end
	file:close();
	self.size, self.dead, self.torn, self.failing, self.owed = 0, 0, false, false, {};
	self.settled = {};
	return self:open_files();
end

-- Called now and then: gives back the space of settled messages.
function spool:tidy()
	if self.live == 0 and next(self.removals) == nil then
		if self.size > 0 then return self:truncate(); end
	elseif self.size > COMPACT_BYTES and self.dead > self.live then
		return self:compact();
	end
	write_owed(self);
	return true;
end

-- Copies what is live into a new file that replaces the old one.
function spool:compact()
	local copy = self.path.."~";
	local ok = true;
	local file, err = io_open(copy, "wb");
	if not file then return nil, err; end
	local size, moved = 0, {};
	local function put(line)
		ok, err = file:write(line);
		size = size + #line;
		return ok;
	end
	for bare, stamp in pairs(self.removals) do
		if not put(line_of("R", escape(bare), stamp)) then break; end
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
	local handles = {};
	for _, move in ipairs(moved) do
		local q, index, offset = self.users[move[1]], move[2], move[3];
		local handle = self.handles[q[index]];
		if not offset then
			self.live = self.live - 1;
		elseif handle then
			handle.offset, handles[offset] = offset, handle;
		end
		q[index] = offset;
	end
	self.handles = handles;
	for bare, q in pairs(self.users) do self:settle(bare, q); end
	close_files(self);
	self.size, self.dead, self.torn, self.failing, self.owed = size, 0, false, false, {};
	self.settled = {};
	return self:open_files();
end

function spool:close()
	if self.writer then write_owed(self); end
	close_files(self);
end

return { open = open };
