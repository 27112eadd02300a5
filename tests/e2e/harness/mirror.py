"""A component that sends each message back, wrapped, to who sent it."""

import xml.etree.ElementTree as ET

from .component import ACCEPT, External
from .prosody import SECRET
from .stanzas import CLIENT, FORWARD


class Mirror(External):
    """Connects as `mirror.` and the server's host."""

    def __init__(self, server):
        super().__init__(server, f"mirror.{server.host}", SECRET)

    def take(self, element):
        """What came goes back."""
        if element.tag != f"{{{ACCEPT}}}message":
            return
        copy = ET.tostring(element, encoding="unicode").replace(ACCEPT, CLIENT)
        self.write(
            f"<message from='{element.get('to')}' to='{element.get('from')}' "
            f"id='{element.get('id')}'><forwarded xmlns='{FORWARD}'>{copy}</forwarded></message>"
        )
