"""`aegis audit`."""

from __future__ import annotations

import csv
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from aegis.audit import MEMBERS, AuditFilter, AuditReader
from aegis.audit.archive import archive as archive_trail
from aegis.audit.imports import import_agent_aegis
from aegis.audit.signing import is_signed_by
from aegis.audit.verify import Pin, Verified, exported_links, is_database, verify_export
from aegis.audit.verify import verify as verify_trail
from aegis.cli.terminal import FORMAT, echo_json, paint
from aegis.errors import ConfigError, InvalidTrail, shown
from aegis.query import AUDIT_PARAMETERS
from aegis.store import Store
