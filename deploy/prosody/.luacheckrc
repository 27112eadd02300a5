-- The globals that Prosody gives to a module, and no others.
std = "lua54"
cache = false
max_line_length = 130
read_globals = { "module", "prosody" }
files["mod_amphora.lua"] = {
	-- mod_amphora.lua defines the methods that Prosody calls: load, unload, save, command
	globals = { "module" },
}
