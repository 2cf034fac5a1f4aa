"""What every room does with files and folders: whole writes, ownership marks, leases, checksums."""
