//! Proxmox VE as values: property strings, requests, replies, errors, task ids.
