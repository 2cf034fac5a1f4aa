"""Files and folders: atomic writes, ownership marks, leases, checksums, remote places."""
