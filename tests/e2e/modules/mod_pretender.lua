-- A server that says it supports rules and never looks at any: what leaves the other one can be
-- seen here as it left.
module:add_feature("http://jabber.org/protocol/amp");
