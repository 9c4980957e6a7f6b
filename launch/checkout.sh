#!/usr/bin/env bash
# Writes an archive of this checkout, for launchers that bring it elsewhere, and
# says what of it is not committed.
#
#   launch/checkout.sh [options] ARCHIVE
#
#   ARCHIVE          to write: NAME.tar or NAME.tar.gz
#   --uncommitted    with what is not committed (ignored files left out);
#                    default: the last commit alone
#   --dry-run        print what would run, run nothing
#   -h, --help       this text
set -euo pipefail

usage() { sed -n '2,/^set -euo/{/^set -euo/d;s/^# \{0,1\}//;p}' "$0"; }

die() {
  echo "launch/checkout.sh: $*" >&2
  exit 2
}

uncommitted=false
dry_run=false
while (($#)); do
  case "$1" in
    --uncommitted) uncommitted=true; shift ;;
    --dry-run) dry_run=true; shift ;;
    -h | --help) usage; exit 0 ;;
    -*) die "unknown option '$1'" ;;
    *) break ;;
  esac
done
(($# == 1)) || die "needs the name of the archive"
archive=$1
case "$archive" in
  *.tar) compress=() format=tar ;;
  *.tar.gz) compress=(--gzip) format=tar.gz ;;
  *) die "'$archive': NAME.tar or NAME.tar.gz" ;;
esac
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
git -C "$root" rev-parse --git-dir > /dev/null 2>&1 ||
  die "$root is no git checkout, so what it holds cannot be named"

commit=$(git -C "$root" rev-parse --short HEAD)
mapfile -t changed < <(git -C "$root" status --porcelain --untracked-files=all)
if ((${#changed[@]} == 0)); then
  echo "shipping commit $commit; nothing is uncommitted" >&2
else
  if $uncommitted; then what=included; else what="NOT included"; fi
  echo "shipping commit $commit; ${#changed[@]} uncommitted, $what:" >&2
  printf '  %s\n' "${changed[@]}" >&2
fi

if ! $uncommitted; then
  command=(git -C "$root" archive "--format=$format" --output "$archive" HEAD)
  if $dry_run; then
    printf '%q ' "${command[@]}"
    echo
  else
    "${command[@]}"
  fi
  exit 0
fi
command=(tar --create "${compress[@]}" --file "$archive" --directory "$root"
  --null --no-recursion --files-from -)
if $dry_run; then
  echo "git ls-files --cached --others | $(printf '%q ' "${command[@]}")"
  exit 0
fi
# A file that was deleted, but not with git, is listed still.
git -C "$root" ls-files -z --cached --others --exclude-standard |
  while IFS= read -r -d '' file; do
    if [[ -e $root/$file || -L $root/$file ]]; then printf '%s\0' "$file"; fi
  done | sort --zero-terminated --unique | "${command[@]}"
