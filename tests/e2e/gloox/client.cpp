// A client made with gloox, a second library with XEP-0079 of its own, for the tests to drive.
//
//   client JID PASSWORD HOST PORT PRIORITY ACKS
//
// logs in (PLAIN, no TLS) and becomes available. ACKS: 1 for stream management (XEP-0198).
//
// A line of standard input is a command, its fields parted by tabs; \\, \t and \n are escapes:
//
//   message TO TYPE ID BODY [ACTION CONDITION VALUE]...   ID may be empty
//   presence PRIORITY
//   quit
//
// A line of standard output is a JSON object with an "event": connected, disconnected, presence,
// message. What is in a message is what gloox made of it. The bytes go to standard error.

#include <gloox/amp.h>
#include <gloox/client.h>
#include <gloox/connectionlistener.h>
#include <gloox/connectiontcpclient.h>
#include <gloox/delayeddelivery.h>
#include <gloox/error.h>
#include <gloox/loghandler.h>
#include <gloox/message.h>
#include <gloox/messagehandler.h>
#include <gloox/presence.h>
#include <gloox/presencehandler.h>
#include <gloox/tag.h>

#include <poll.h>
#include <unistd.h>

#include <cstdlib>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

using namespace gloox;

namespace {

// ------------------------------------------------------------------------------------ lines

std::string quote(const std::string& text) {
    static const char digits[] = "0123456789abcdef";
    std::string out = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') {
            out += '\\';
            out += c;
        } else if (static_cast<unsigned char>(c) < 0x20) {
            out += "\\u00";
            out += digits[c >> 4];
            out += digits[c & 15];
        } else {
            out += c;
        }
    }
    return out + "\"";
}

// An object, key by key.
class Object {
public:
    Object& raw(const std::string& key, const std::string& json) {
        m_text += (m_text.empty() ? "{" : ",") + quote(key) + ":" + json;
        return *this;
    }
    Object& text(const std::string& key, const std::string& value) { return raw(key, quote(value)); }
    std::string json() const { return m_text.empty() ? "{}" : m_text + "}"; }

private:
    std::string m_text;
};

void say(const Object& object) { std::cout << object.json() << std::endl; }

std::vector<std::string> fields(const std::string& line) {
    std::vector<std::string> found(1);
    for (std::size_t i = 0; i < line.size(); ++i) {
        if (line[i] == '\t') {
            found.emplace_back();
        } else if (line[i] == '\\' && i + 1 < line.size()) {
            ++i;
            found.back() += line[i] == 't' ? '\t' : line[i] == 'n' ? '\n' : line[i];
        } else {
            found.back() += line[i];
        }
    }
    return found;
}

// ------------------------------------------------------------------------------------ rules

// gloox has a type for each condition and its values.
AMP::ActionType action_of(const std::string& word) {
    if (word == "alert") return AMP::ActionAlert;
    if (word == "error") return AMP::ActionError;
    if (word == "drop") return AMP::ActionDrop;
    if (word == "notify") return AMP::ActionNotify;
    throw std::runtime_error("no action of gloox: " + word);
}

AMP::DeliverType deliver_of(const std::string& word) {
    if (word == "direct") return AMP::DeliverDirect;
    if (word == "forward") return AMP::DeliverForward;
    if (word == "gateway") return AMP::DeliverGateway;
    if (word == "none") return AMP::DeliverNone;
    if (word == "stored") return AMP::DeliverStored;
    throw std::runtime_error("no value of deliver: " + word);
}

AMP::MatchResourceType resource_of(const std::string& word) {
    if (word == "any") return AMP::MatchResourceAny;
    if (word == "exact") return AMP::MatchResourceExact;
    if (word == "other") return AMP::MatchResourceOther;
    throw std::runtime_error("no value of match-resource: " + word);
}

AMP::Rule* rule_of(const std::string& action, const std::string& condition, const std::string& value) {
    if (condition == "deliver") return new AMP::Rule(deliver_of(value), action_of(action));
    if (condition == "match-resource") return new AMP::Rule(resource_of(value), action_of(action));
    if (condition == "expire-at") return new AMP::Rule(value, action_of(action));
    throw std::runtime_error("no condition of gloox: " + condition);
}

// gloox looks for rules from the root of a stanza, as /amp/rule, where a message has none. So its own
// reader gets a copy of the element that is a root.
class Received : public AMP {
public:
    StanzaExtension* newInstance(const Tag* tag) const override {
        const std::unique_ptr<Tag> alone(tag->clone());
        return new AMP(alone.get());
    }
};

Object attributes(const Tag& tag) {
    Object object;
    for (const auto* attribute : tag.attributes()) object.text(attribute->name(), attribute->value());
    return object;
}

std::string rules_json(const AMP& amp) {
    std::string list;
    for (const auto* rule : amp.rules()) {
        const std::unique_ptr<Tag> tag(rule->tag());
        list += (list.empty() ? "" : ",") + (tag ? attributes(*tag).json() : "null");
    }
    return "[" + list + "]";
}

// ------------------------------------------------------------------------------------ stanzas

std::string type_word(Message::MessageType type) {
    switch (type) {
    case Message::Chat: return "chat";
    case Message::Error: return "error";
    case Message::Groupchat: return "groupchat";
    case Message::Headline: return "headline";
    case Message::Normal: return "normal";
    default: return "invalid";
    }
}

Message::MessageType type_of(const std::string& word) {
    if (word == "chat") return Message::Chat;
    if (word == "headline") return Message::Headline;
    if (word == "normal") return Message::Normal;
    throw std::runtime_error("no type to send: " + word);
}

std::string error_json(const Error& error) {
    const std::unique_ptr<Tag> tag(error.tag());
    Object object;
    if (!tag) return "null";
    object.text("type", tag->findAttribute("type"));
    for (const auto* child : tag->children()) {
        if (child->xmlns() == XMLNS_XMPP_STANZAS && child->name() != "text") object.text("condition", child->name());
    }
    if (const Tag* detail = error.appError()) {
        std::string rules;
        for (const auto* rule : detail->findChildren("rule")) {
            rules += (rules.empty() ? "" : ",") + attributes(*rule).json();
        }
        object.text("detail", detail->name()).text("namespace", detail->xmlns()).raw("rules", "[" + rules + "]");
    }
    return object.json();
}

Object message_object(const Message& message) {
    Object object;
    object.text("event", "message").text("from", message.from().full()).text("to", message.to().full());
    object.text("id", message.id()).text("type", type_word(message.subtype())).text("body", message.body());
    if (const auto* amp = message.findExtension<AMP>(ExtAMP)) {
        object.raw("rules", rules_json(*amp));
        // its status and addresses have no other way out
        const std::unique_ptr<Tag> tag(amp->tag());
        object.raw("amp", tag ? attributes(*tag).json() : "null");
    }
    if (const auto* error = message.error()) object.raw("error", error_json(*error));
    if (const auto* delay = message.when()) object.text("delay", delay->stamp());
    return object;
}

// ------------------------------------------------------------------------------------ the client

class Driven : public ConnectionListener, public MessageHandler, public PresenceHandler, public LogHandler {
public:
    Driven(const JID& jid, const std::string& password, const std::string& host, int port, int priority, bool acks)
        : m_client(jid, password, port) {
        m_client.setServer(host);
        m_client.setTls(TLSDisabled);
        m_client.setCompression(false);
        m_client.setSASLMechanisms(SaslMechPlain);
        m_client.setStreamManagement(acks, false);
        m_client.setPresence(Presence::Available, priority);
        m_client.registerStanzaExtension(new Received());
        m_client.registerStanzaExtension(new DelayedDelivery());
        m_client.registerConnectionListener(this);
        m_client.registerMessageHandler(this);
        m_client.registerPresenceHandler(this);
        m_client.logInstance().registerLogHandler(LogLevelDebug, LogAreaXmlIncoming | LogAreaXmlOutgoing, this);
    }

    // Until the stream or standard input ends.
    int run() {
        if (!m_client.connect(false)) return 1;
        std::string input;
        while (!m_ended) {
            const auto* connection = dynamic_cast<const ConnectionTCPBase*>(m_client.connectionImpl());
            pollfd watched[] = {{STDIN_FILENO, POLLIN, 0}, {connection ? connection->socket() : -1, POLLIN, 0}};
            if (poll(watched, 2, -1) < 0) return 1;
            if (watched[1].revents != 0) m_client.recv(0);
            if (watched[0].revents != 0 && !read_commands(input)) m_client.disconnect();
        }
        return 0;
    }

    void onConnect() override { say(Object().text("event", "connected").text("jid", m_client.jid().full())); }

    void onDisconnect(ConnectionError error) override {
        m_ended = true;
        say(Object().text("event", "disconnected").raw("error", std::to_string(error)));
    }

    bool onTLSConnect(const CertInfo&) override { return false; }

    void handleMessage(const Message& message, MessageSession*) override { say(message_object(message)); }

    void handlePresence(const Presence& presence) override {
        Object object;
        object.text("event", "presence").text("from", presence.from().full());
        say(object.raw("priority", std::to_string(presence.priority())));
    }

    void handleLog(LogLevel, LogArea area, const std::string& text) override {
        std::cerr << (area == LogAreaXmlIncoming ? "<- " : "-> ") << text << std::endl;
    }

private:
    bool read_commands(std::string& input) {
        char bytes[4096];
        const ssize_t count = read(STDIN_FILENO, bytes, sizeof bytes);
        if (count <= 0) return false;
        input.append(bytes, static_cast<std::size_t>(count));
        for (std::size_t end; (end = input.find('\n')) != std::string::npos; input.erase(0, end + 1)) {
            command(fields(input.substr(0, end)));
        }
        return true;
    }

    void command(const std::vector<std::string>& words) {
        if (words[0] == "message" && words.size() >= 5 && words.size() % 3 == 2) {
            message(words);
        } else if (words[0] == "presence" && words.size() == 2) {
            m_client.setPresence(Presence::Available, std::stoi(words[1]));
        } else if (words[0] == "quit") {
            m_client.disconnect();
        } else {
            throw std::runtime_error("no such command: " + words[0]);
        }
    }

    void message(const std::vector<std::string>& words) {
        Message message(type_of(words[2]), JID(words[1]), words[4]);
        message.setID(words[3]);
        if (words.size() > 5) {
            auto amp = std::make_unique<AMP>();
            for (std::size_t i = 5; i < words.size(); i += 3) amp->addRule(rule_of(words[i], words[i + 1], words[i + 2]));
            message.addExtension(amp.release());
        }
        m_client.send(message);
    }

    Client m_client;
    bool m_ended = false;
};

} // namespace

int main(int argc, char** argv) {
    if (argc != 7) {
        std::cerr << "usage: client JID PASSWORD HOST PORT PRIORITY ACKS" << std::endl;
        return 2;
    }
    try {
        const std::vector<std::string> given(argv + 1, argv + argc);
        Driven client(JID(given[0]), given[1], given[2], std::stoi(given[3]), std::stoi(given[4]), given[5] == "1");
        return client.run();
    } catch (const std::exception& error) {
        std::cerr << "error: " << error.what() << std::endl;
        return 1;
    }
}
