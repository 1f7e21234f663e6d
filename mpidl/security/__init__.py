"""Identity, encryption, signatures, audit."""
