#!/usr/bin/env bash
# Installs what a bare Debian 12 lacks for building and testing croft, and says
# what it does. It looks at the machine itself, keeps no stamp, and is done in
# less than a second when nothing is missing. Run it as often as you like.
#
# Exit codes: 0 ready · 1 apt could not do it · 2 not Debian 12 · 3 not root
#             4 Go is missing or too old · 5 no apt source to derive from
set -euo pipefail

packages=(
  make git ca-certificates iproute2 xz-utils zstd kmod    # tools of the build itself
  cpio                                                    # copies the source for the test of two builds
  binutils gcc libc6-dev gnu-efi systemd-boot-efi         # loader, unified kernel image, race detector
  squashfs-tools dosfstools mtools gdisk                  # disk images, written and cross-checked
  e2fsprogs e2fsck-static cryptsetup-bin                  # /perm and dm-verity, cross-checked
  qemu-system-x86 qemu-utils ovmf swtpm swtpm-tools       # the box in a virtual machine
  postgresql mosquitto                                    # the fleet on engines that others run
  chromium fonts-dejavu-core                              # the console in a browser, tests only
)
# Tests run the client that Akash's tenants use. Any Node.js from 18 on will do:
# Debian's is installed only where there is none.
command -v node >/dev/null && command -v npm >/dev/null || packages+=(nodejs npm)
suite=bookworm
backports=$suite-backports # the image's kernel comes from here; the image build downloads it
source_file=/etc/apt/sources.list.d/croft-backports.sources
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
go_minimum=26 # Go 1.26

say() { printf 'setup: %s\n' "$*"; }
die() { # die CODE SENTENCE...
  local code=$1
  shift
  say "$*" >&2
  exit "$code"
}

check_system() {
  local id=unknown version=unknown
  if [ -r /etc/os-release ]; then
    # shellcheck source=/dev/null
    id=$(. /etc/os-release && printf '%s' "${ID:-unknown}")
    # shellcheck source=/dev/null
    version=$(. /etc/os-release && printf '%s' "${VERSION_ID:-unknown}")
  fi
  [ "$id $version" = "debian 12" ] ||
    die 2 "this is $id $version, not Debian 12; use a Debian 12 machine, virtual machine or container"
}

check_go() {
  local version minor
  PATH=$PATH:/usr/local/go/bin
  command -v go >/dev/null ||
    die 4 "Go is not in PATH nor in /usr/local/go; install Go 1.$go_minimum or newer from https://go.dev/dl/ and run this again"
  version=$(go env GOVERSION)
  minor=${version#go1.}
  minor=${minor%%[!0-9]*}
  [ "${minor:-0}" -ge "$go_minimum" ] ||
    die 4 "Go is ${version#go}, too old; install Go 1.$go_minimum or newer from https://go.dev/dl/ and run this again"
  go_version=${version#go}
}

# missing_packages prints those of the list that dpkg does not call installed.
missing_packages() {
  comm -23 <(printf '%s\n' "${packages[@]}" | sort) \
    <(dpkg-query -W -f='${db:Status-Status} ${Package}\n' "${packages[@]}" 2>/dev/null | sed -n 's/^installed //p' | sort -u)
}

# mirror_of SUITE prints the address apt is configured to fetch the suite from.
mirror_of() {
  # shellcheck disable=SC2016 # the words in $() are apt's
  apt-get indextargets --no-release-info --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
    awk -v suite="$1" '$1 == suite && $2 == "main" && !found { print $3; found = 1 }'
}

lists_of_backports() { compgen -G "/var/lib/apt/lists/*_dists_${backports}_main_*Packages*" >/dev/null; }

# with_progress WHAT apt-get… runs apt and prints a line each time it has come
# 10 % further or 5 s have gone by. What apt itself says is shown if it fails.
with_progress() {
  local what=$1 log shown=-10 at=$SECONDS percent text
  shift
  log=$(mktemp)
  say "$what"
  if ! "$@" -o APT::Status-Fd=3 -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300 3>&1 >"$log" 2>&1 </dev/null |
    while IFS=: read -r _ _ percent text; do
      percent=${percent%%.*}
      [[ $percent =~ ^[0-9]+$ ]] || continue
      if ((percent >= shown + 10 || percent < shown || SECONDS >= at + 5)); then
        printf 'setup: %3d %%  %s\n' "$percent" "$text"
        shown=$percent at=$SECONDS
      fi
    done; then
    grep -E '^(E:|dpkg: error|dpkg-deb: error)' "$log" | tail -n 5 >&2 || tail -n 10 "$log" >&2
    rm -f "$log"
    return 1
  fi
  rm -f "$log"
}

fetch_lists() {
  local try
  for try in 1 2 3; do
    with_progress "fetching package lists (try $try of 3)" apt-get update -q --error-on=any && return
    [ "$try" = 3 ] || sleep $((try * 5))
  done
  say "some package lists could not be fetched; going on with those at hand" >&2
}

check_system
check_go
mapfile -t missing < <(missing_packages)
have_source=$(mirror_of "$backports")
if [ ${#missing[@]} = 0 ] && [ -n "$have_source" ] && lists_of_backports; then
  say "nothing to do: Go $go_version, ${#packages[@]} packages and the suite $backports are in place"
  exit 0
fi

[ "$(id -u)" = 0 ] || die 3 "not root, and there is something to install; run: sudo ./setup.sh"
export DEBIAN_FRONTEND=noninteractive

if [ -z "$have_source" ]; then
  mirror=$(mirror_of "$suite")
  [ -n "$mirror" ] || die 5 "apt has no source for the suite $suite; add one under /etc/apt/sources.list.d and run this again"
  [ -r "$keyring" ] || die 5 "$keyring is missing; run: apt-get install --reinstall debian-archive-keyring"
  say "adding the suite $backports from $mirror in $source_file"
  printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n' \
    "$mirror" "$backports" "$keyring" >"$source_file.new"
  mv "$source_file.new" "$source_file"
fi
fetch_lists
lists_of_backports ||
  die 1 "the package list of $backports could not be fetched; check the network and the mirror in $source_file, then run this again"
if [ ${#missing[@]} -gt 0 ]; then
  with_progress "installing ${#missing[@]} packages: ${missing[*]}" \
    apt-get install -q -y --no-install-recommends "${missing[@]}" ||
    die 1 "apt could not install the packages; check network and free space, then run this again"
  mapfile -t missing < <(missing_packages)
  [ ${#missing[@]} = 0 ] || die 1 "still not installed: ${missing[*]}; run: apt-get install ${missing[*]}"
fi
say "ready: Go $go_version, ${#packages[@]} packages and the suite $backports are in place"
