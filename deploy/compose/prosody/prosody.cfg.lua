-- Prosody of the compose file: one host, three components, one for each node.

-- A secret is a file with one line. It is never in this file, which an image may hold.
local function secret(name)
  local file = assert(io.open("/run/secrets/" .. name))
  local line = assert(file:read("*l"), name .. " is empty")
  file:close()
  return line
end

pidfile = "/tmp/prosody.pid"
data_path = "/var/lib/prosody"
log = { info = "*console" }

-- clients come over TLS alone; components (XEP-0114) have no encryption, and a network of their own
ssl = { certificate = "/run/secrets/prosody-certificate", key = "/run/secrets/prosody-key" }
c2s_require_encryption = true
component_interfaces = { "*" }
modules_disabled = { "s2s" }
authentication = "internal_hashed"

plugin_paths = { "/usr/local/lib/prosody/modules" }
modules_enabled = {
  "disco", "roster", "saslauth", "tls", "posix", "ping", "vcard4",
  "mam", "carbons", "smacks", "csi_simple", "blocklist", "private", "pep",
}

VirtualHost "example.org"
  modules_enabled = { "amphora" }
  amphora_components = { "amp1.example.org", "amp2.example.org", "amp3.example.org" }

for number = 1, 3 do
  Component("amp" .. number .. ".example.org")
  component_secret = secret("component-secret")
  -- a node that comes back takes the place of its old stream
  component_conflict_resolve = "kick_old"
end
