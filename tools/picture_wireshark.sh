#!/usr/bin/env bash
# A picture of Wireshark with the upcall dissector: docs/pictures/wireshark.png, or the file named.
# It needs wireshark, Xvfb, xdotool and ImageMagick, and so is not part of `make docs`.
set -euo pipefail
cd "$(dirname "$0")/.."
picture=${1:-docs/pictures/wireshark.png}
home=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$home"' EXIT
export HOME=$home XDG_CONFIG_HOME=$home/config XDG_RUNTIME_DIR=$home DISPLAY=:97
.venv/bin/upcall-trace wireshark install >/dev/null 2>&1
mkdir -p "$home/config/wireshark"
cat >"$home/config/wireshark/preferences" <<'PREFERENCES'
gui.update.enabled: FALSE
gui.window_title: upcall
gui.layout_type: 1
PREFERENCES
printf 'gui.geometry_main_maximized: TRUE\ngui.geometry_main_upper_pane: 330\ngui.geometry_main_lower_pane: 200\n' \
    >"$home/config/wireshark/recent"
Xvfb :97 -screen 0 960x768x24 >/dev/null 2>&1 &
sleep 2
wireshark -r tests/golden/mmio_lifecycle.vsockmon.pcap -Y upcall -g 14 >/dev/null 2>&1 &
sleep 12
xdotool mousemove 300 462 click 1 key Right
sleep 2
import -window root "$picture"
