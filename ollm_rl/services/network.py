"""Whether the Hugging Face hub can be reached. Its libraries retry for up to a minute before they say so."""

import urllib.error
import urllib.request

from huggingface_hub.constants import ENDPOINT

TIMEOUT = 5.0  # seconds


def hub_answers() -> bool:
    """Whether the hub is reachable; takes a few seconds at most."""
    try:
        urllib.request.urlopen(ENDPOINT, timeout=TIMEOUT).close()
    except urllib.error.HTTPError:  # an error status is an answer too
        return True
    except OSError:
        return False
    return True
