"""What a client can find out. R6 to R8, R10, R11, R68; O10."""

import xml.etree.ElementTree as ET

import pytest

from harness.prosody import HOST
from harness.stanzas import AMP, AMP_FEATURE, INFO, OFFLINE


@pytest.fixture(scope="module")
def prosody(workshop):
    """The server."""
    return workshop.server()


@pytest.fixture(scope="module")
def node(workshop, prosody):
    """The node."""
    return workshop.node(prosody)


async def features(client, node=None):
    """The features of the server, or of a node of it; None for an error."""
    attribute = f" node='{node}'" if node else ""
    answer = await client.iq(f"<query xmlns='{INFO}'{attribute}/>", to=HOST)
    if answer.type == "error":
        return None
    query = answer.find(f"{{{INFO}}}query")
    assert query.get("node") == node
    return [f.get("var") for f in query.findall(f"{{{INFO}}}feature")]


ALL = {f"{AMP}?action={a}" for a in ("alert", "drop", "error", "notify")} | {
    f"{AMP}?condition={c}" for c in ("deliver", "expire-at", "match-resource")
}


async def test_features(prosody, node, clients):
    """R6, O10: the server lists both, once."""
    a = await clients.login(prosody, *prosody.people("alice"), raw=True)
    listed = await features(a)
    assert listed.count(AMP) == 1
    assert listed.count(OFFLINE) == 1


async def test_the_node_of_the_same_name(prosody, node, clients):
    """R7, R8, R10, R11: its actions and conditions."""
    a = await clients.login(prosody, *prosody.people("alice"), raw=True)
    listed = await features(a, AMP)
    assert AMP in listed
    assert {f for f in listed if "?" in f} == ALL


async def test_the_stream_feature(prosody, node, clients):
    """R68: after authentication."""
    a = await clients.login(prosody, *prosody.people("alice"), raw=True)
    names = [child.tag for child in a.features]
    assert f"{{{AMP_FEATURE}}}amp" in names, ET.tostring(a.features)


async def test_slixmpp_discovers_it(prosody, node, clients):
    """R4: an independent client's discovery."""
    a = await clients.online(prosody, *prosody.people("alice"))
    info = await a["xep_0079"].discover_support()
    assert ALL <= set(info["disco_info"]["features"])


async def test_performance_offers_drop_alone(workshop, clients):
    """R7 with R71: at `performance` only what is accepted is listed, or all; never more."""
    server = workshop.server()
    workshop.node(server, security="performance")
    a = await clients.login(server, *server.people("alice"), raw=True)
    listed = {f for f in await features(a, AMP) if "?" in f}
    assert f"{AMP}?action=drop" in listed
    assert listed <= ALL


async def test_without_a_node_nothing_is_promised(workshop, clients):
    """R6, R25: no node, no feature; it comes and goes with the node."""
    server = workshop.server()
    a = await clients.login(server, *server.people("alice"), raw=True)
    assert AMP not in await features(a)
    assert f"{{{AMP_FEATURE}}}amp" not in [c.tag for c in a.features]
    node = workshop.node(server)
    assert AMP in await features(a)
    node.stop()
    # a stopped node has closed its link; the server sees it within a few round trips
    for _ in range(200):
        if AMP not in await features(a):
            break
    else:
        pytest.fail("the feature stayed although the node is gone")
