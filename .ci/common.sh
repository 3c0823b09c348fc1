# shellcheck shell=bash
# What .ci/containers and .ci/apptainer share.

step() { printf '\n=== %s (%s s)\n' "$1" "$SECONDS"; }
fail() { echo "FAILED: $*" >&2; exit 1; }
reachable() { curl -sfIL --max-time 10 -o /dev/null "$1"; }

# files that this machine's pip needs to reach its packages: configuration, certificates, folders of wheels. They are lent
# to a build at the same place (or beneath /root); the image holds none of them. A line each: FROM:TO
lent() {
    local path
    {
        for path in /etc/pip.conf /etc/xdg/pip "${SSL_CERT_FILE:-}" \
            $( (pip config list; printenv PIP_FIND_LINKS) 2>/dev/null | grep -oE '/[^ '\'']+'); do
            path=${path%/simple} # a local index: its files lie beside it
            if [[ -e $path ]]; then echo "$path:$path"; fi
        done
        for path in "$HOME/.config/pip" "$HOME/.pip"; do
            if [[ -d $path ]]; then echo "$path:/root/${path#"$HOME"/}"; fi
        done
    } | sort -u
}

# the Debian mirror that this machine uses
mirror() {
    awk '/^URIs:/ { print $2; exit } /^deb / { for (i = 2; i <= NF; i++) if ($i ~ /^http/) { print $i; exit } }' \
        /etc/apt/sources.list.d/*.sources /etc/apt/sources.list 2>/dev/null || true
}

debian() { # folder, release, packages: a minimal Debian
    debootstrap --variant=minbase --include="$3" "$2" "$1" "$(mirror)" >"$1.log" 2>&1 ||
        { tail -20 "$1.log" >&2; fail "debootstrap"; }
    rm -rf "$1"/var/cache/apt/archives/*.deb "$1"/var/lib/apt/lists/*
}
