"""Which certificate authorities are trusted: those of one file, or the system's, or else httpx's own."""

import ssl
from pathlib import Path

import httpx

import pisync_agent.network.failures as failures


def private_trust(ca_file: str) -> ssl.SSLContext:
    """Trust the authorities in one PEM file and no others. Raises Unreachable (tls) if the file cannot be used."""
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise failures.bad_ca_file(ca_file, error) from error


def public_trust() -> ssl.SSLContext:
    """Trust the system's authorities, or else httpx's own. Raises Unreachable (tls) where there are none at all."""
    if _system_has_authorities():
        return ssl.create_default_context()
    try:
        return httpx.create_ssl_context(trust_env=False)
    except (OSError, ssl.SSLError) as error:
        raise failures.no_authorities(error) from error


def no_trust() -> ssl.SSLContext:
    """Trust nothing: where TLS is not used, loading authorities would cost time for nothing."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _system_has_authorities() -> bool:
    """Return whether there is a file of authorities that is not empty, or a folder with one."""
    paths = ssl.get_default_verify_paths()
    if paths.cafile and Path(paths.cafile).stat().st_size:
        return True
    return paths.capath is not None and any(Path(paths.capath).glob("*.0"))
