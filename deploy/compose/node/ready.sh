#!/bin/bash
# Ends with 0 if the node in this container is ready. The image has no HTTP client, and needs none.
set -euo pipefail
exec 3<>"/dev/tcp/127.0.0.1/${1:-9079}"
printf 'GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' >&3
read -r _ status _ <&3
[ "$status" = 200 ]
