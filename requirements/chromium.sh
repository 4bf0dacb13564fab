#!/usr/bin/env bash
# See that there is a Chromium for the tests of the page. `make test` calls this.
#
# It is a package of the system, so only root on Debian gets it installed here, as in a container;
# without one these tests are left out, or fail where CI is set (tests/harness/chromium.py).
set -euo pipefail

for name in chromium chromium-browser google-chrome google-chrome-stable chrome; do
    command -v "$name" >/dev/null && exit 0
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing chromium for the tests of the page"
    export DEBIAN_FRONTEND=noninteractive
    (apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium) >/dev/null && exit 0
fi
echo "No Chromium: the tests of the page cannot run. Hint: on Debian, apt install chromium" >&2
