"""The scene: alice writes to bob, who is away, with rules; then bob comes back.

The clients are slixmpp, an XMPP library that knows nothing of Amphora; what it prints is what
came over its stream. Every line that says how it is to go is checked.
"""

import asyncio
import time
from datetime import datetime, timedelta, timezone

import slixmpp

PASSWORD = "amphora"
HOST = "example.org"
ALICE = f"alice@{HOST}"
BOB = f"bob@{HOST}"
PATIENCE = 30
AMP = "http://jabber.org/protocol/amp"
DELAY = "urn:xmpp:delay"

MEANING = {
    "notify": "notify: if it happens tell me, and go on",
    "alert": "alert: if it happens tell me, and forget the message",
    "error": "error: if it happens refuse the message",
}


class NotAsTold(Exception):
    """The scene took another turn."""


class Person(slixmpp.ClientXMPP):
    """A client that keeps the messages it gets."""

    def __init__(self, name, resource, port):
        super().__init__(f"{name}@{HOST}/{resource}", PASSWORD)
        self.name, self.port = name, port
        self.got = []
        self.enable_direct_tls = False
        self.enable_starttls = False
        self.enable_plaintext = True
        self.plugin["feature_mechanisms"].unencrypted_plain = True
        for plugin in ("xep_0030", "xep_0079", "xep_0198", "xep_0199"):
            self.register_plugin(plugin)
        self.add_filter("in", self.keep)

    def keep(self, stanza):
        """Record every message, replies and errors too."""
        if isinstance(stanza, slixmpp.Message):
            self.got.append(stanza)
        return stanza

    async def arrive(self):
        """Log in and become available."""
        started = asyncio.get_running_loop().create_future()
        self.add_event_handler("session_start", lambda _: started.done() or started.set_result(0))
        self.connect("127.0.0.1", self.port)
        try:
            await asyncio.wait_for(started, PATIENCE)
        except asyncio.TimeoutError:
            raise NotAsTold(f"{self.name} could not log in") from None
        self.send_presence()
        await self.round_trip()

    async def round_trip(self):
        """What was sent before has reached the server."""
        await self["xep_0199"].ping(jid=HOST, timeout=PATIENCE)

    async def until(self, condition, what):
        """Wait for something to come."""
        end = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > end:
                raise NotAsTold(f"{self.name} waited {PATIENCE} s in vain for {what}")
            await asyncio.sleep(0.02)

    async def reply_to(self, id, status):
        """The reply about the message with that id."""

        def found():
            return next((m for m in self.got if m["id"] == id and status_of(m) == status), None)

        await self.until(found, f"the {status} about {id}")
        return found()

    def texts(self):
        """The messages that are meant to be read."""
        return [m for m in self.got if m["body"] and m["type"] in ("chat", "normal")]


def status_of(message):
    """The status of a reply about rules."""
    amp = message.xml.find(f"{{{AMP}}}amp")
    return None if amp is None else amp.get("status")


def in_words(condition, value):
    """A condition as a person would say it."""
    if condition == "expire-at":
        return "it is not delivered by then"
    return {"stored": "it has to be stored", "direct": "it goes to him at once"}[value]


def in_seconds(seconds):
    """A time from now, as rules write it."""
    moment = datetime.now(timezone.utc) + timedelta(seconds=seconds)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


class Scene:
    """The play, line by line."""

    def __init__(self, port, transcript):
        self.port, self.tell = port, transcript
        self.alice = Person("alice", "desk", port)
        self.bob = Person("bob", "phone", port)
        self.number = 0

    def write(self, text, rule=None):
        """Alice writes to Bob; the id of the message."""
        self.number += 1
        message = self.alice.make_message(BOB, text, mtype="chat")
        message["id"] = f"scene-{self.number}"
        details = []
        if rule:
            action, condition, value = rule
            message["amp"].add_rule(action, condition, value)
            details = [f"rule: if {in_words(condition, value)} ({condition}={value}), {action}"]
        message.send()
        self.tell.event("alice", ">", "bob", f"“{text}”", *details)
        return message["id"]

    async def hear(self, id, status, means):
        """Alice gets a reply about that message."""
        reply = await self.alice.reply_to(id, status)
        rule = reply.xml.find(f"{{{AMP}}}amp/{{{AMP}}}rule")
        check(rule is not None and rule.get("action") == status, f"a {status} with its rule")
        check(reply.xml.find("{jabber:client}body") is None, "no text in a reply")
        self.tell.event("alice", "<", HOST, f"{status.upper()}: {means}")

    async def act_one(self):
        """Bob is away."""
        self.tell.title("1. Bob is away")
        await self.alice.arrive()
        self.write("Are you coming tonight?")
        id = self.write("Call me when you read this.", ("notify", "deliver", "stored"))
        await self.hear(id, "notify", "it is kept until he is back")
        id = self.write("Look out of the window, now!", ("alert", "deliver", "stored"))
        await self.hear(id, "alert", "he is away, so it was forgotten")
        self.lunch = self.write(
            "Lunch in two seconds?", ("error", "expire-at", in_seconds(2))
        )
        self.write("The table is booked for eight.")
        await self.alice.round_trip()

    async def act_two(self):
        """Time passes."""
        self.tell.title("2. Time passes, and the invitation to lunch expires")
        await self.hear(self.lunch, "error", "he did not come in time, so it will not be delivered")

    async def act_three(self):
        """Bob is back."""
        self.tell.title("3. Bob comes back, and gets what was kept, in order")
        await self.bob.arrive()
        expected = [
            "Are you coming tonight?",
            "Call me when you read this.",
            "The table is booked for eight.",
        ]
        await self.bob.until(lambda: len(self.bob.texts()) >= 3, "the three messages")
        for message in self.bob.texts():
            delay = message.xml.find(f"{{{DELAY}}}delay")
            check(delay is not None, "the time at which it was sent")
            stamp = datetime.fromisoformat(delay.get("stamp").replace("Z", "+00:00")).astimezone()
            self.tell.event(
                "bob", "<", "alice", f"“{message['body']}”", f"sent at {stamp:%H:%M:%S}"
            )
        self.expect(expected)

    async def act_four(self):
        """Both are there."""
        self.tell.title("4. Both are there")
        id = self.write("There you are!", ("notify", "deliver", "direct"))
        await self.hear(id, "notify", "it went to him at once")
        await self.bob.until(lambda: len(self.bob.texts()) >= 4, "the last message")
        self.tell.event("bob", "<", "alice", f"“{self.bob.texts()[-1]['body']}”")

    def expect(self, texts):
        """Bob has exactly these."""
        got = [m["body"] for m in self.bob.texts()]
        check(got == texts, f"bob to have {texts}, but he has {got}")

    async def finish(self):
        """Look back, and leave."""
        await self.bob.round_trip()
        self.expect(
            [
                "Are you coming tonight?",
                "Call me when you read this.",
                "The table is booked for eight.",
                "There you are!",
            ]
        )
        replies = [status_of(m) for m in self.alice.got]
        check(replies == ["notify", "alert", "error", "notify"], f"four replies, got {replies}")
        self.tell.title("As told")
        self.tell.good("bob has four messages, in the order in which alice wrote them")
        self.tell.good("the one that was only for now, and the one that expired, never came")
        self.tell.good("alice was told of each by the rule she had put into the message")
        self.tell.line()


def check(true, what):
    """The scene asserts."""
    if not true:
        raise NotAsTold(f"expected {what}")


async def play(port, transcript):
    """Play it all; raises `NotAsTold` if it goes otherwise."""
    scene = Scene(port, transcript)
    transcript.title("What a sender can ask for in a message (XEP-0079)")
    for meaning in MEANING.values():
        transcript.remark(meaning)
    try:
        await scene.act_one()
        await scene.act_two()
        await scene.act_three()
        await scene.act_four()
        await scene.finish()
    finally:
        for person in (scene.alice, scene.bob):
            if person.is_connected():
                await person.disconnect()
