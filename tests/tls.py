"""TLS on loopback, with a certificate that no machine accepts by itself."""

import ssl
from pathlib import Path

from tests.loopback import LoopbackServer

# Made for tests; it signs itself, for 127.0.0.1, until 2120.
KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgZ+t0oxIuZFQe4SHa
gIeloxEmrQfyrew8TzVE/q30NrShRANCAARuxsf9FvVdCCvDXFFoJxAClEsuNKP3
GDnPjajufM25Syhuf6QOIDi6prWC363vKDHyWG93pIj4XOfVCb0K9peR
-----END PRIVATE KEY-----
"""
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBjDCCATOgAwIBAgIBATAKBggqhkjOPQQDAjAUMRIwEAYDVQQDDAkxMjcuMC4w
LjEwIBcNMjAwMTAxMDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMBQxEjAQBgNVBAMM
CTEyNy4wLjAuMTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABG7Gx/0W9V0IK8Nc
UWgnEAKUSy40o/cYOc+NqO58zblLKG5/pA4gOLqmtYLfre8oMfJYb3ekiPhc59UJ
vQr2l5GjdDByMA8GA1UdEwEB/wQFMAMBAf8wDgYDVR0PAQH/BAQDAgGGMB0GA1Ud
DgQWBBTnrrhtaIqvctipzjIvt9x84/14RDAfBgNVHSMEGDAWgBTnrrhtaIqvctip
zjIvt9x84/14RDAPBgNVHREECDAGhwR/AAABMAoGCCqGSM49BAMCA0cAMEQCIBW4
aO9rWWnxhaOFmhgBMLcRVrXf1gDG4FTtVnokEFeFAiBCh11PRKidD/B55xkw9+3y
f6ftZptiiLdEFmicPxryww==
-----END CERTIFICATE-----
"""


def use_tls(server: LoopbackServer, folder: Path) -> Path:
    """Make `server` speak TLS; return the file with the certificate that clients must accept."""
    certificate, key = folder / "server.pem", folder / "server.key"
    certificate.write_text(CERTIFICATE)
    key.write_text(KEY)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    return certificate
