"""Fixtures that tests of pages and event streams share with other tests."""

from __future__ import annotations

from tests.support.api_keys import client_with_key as client_with_key
from tests.support.api_keys import client_without_key as client_without_key
from tests.support.api_keys import make_secret as make_secret
