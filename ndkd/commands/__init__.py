"""The commands of ``ndkd``, a file each."""
