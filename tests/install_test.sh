#!/usr/bin/env bash
# What is installed works: the program, its manual page and the completion scripts, which know every command and option that --help
# lists; and the .deb holds the same.
#   install_test.sh CAROUSEL BUILD_DIR
set -euo pipefail
build=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() { echo "FAIL: $*" >&2; exit 1; }

cmake --install "$build" --prefix "$work/usr" >"$work/log" || { cat "$work/log"; fail "cmake --install"; }
program=$work/usr/bin/carousel
"$program" --version >/dev/null || fail "the installed program does not start"
"$program" plan --config "$work/usr/share/carousel/configs/xlstm_165m.textproto" >/dev/null || fail "an installed config cannot be planned"

# Names of the commands (options) in the help of "carousel $@".
commands() { "$program" "$@" --help | sed -n '/^Subcommands:/,/^$/p' | sed -n 's/^  \([a-z_]\{1,\}\).*/\1/p'; }
options() { "$program" "$@" --help | sed -n '/^Options:/,/^$/p' | sed -n 's/^  \(-[a-z],\)\{0,1\}\(--[a-z_]*\).*/\2/p'; }

man=$work/usr/share/man/man1/carousel.1
bash_script=$work/usr/share/bash-completion/completions/carousel
zsh_script=$work/usr/share/zsh/site-functions/_carousel
# complete WORD...: what bash offers for the last word.
complete_line() {
  bash -uc 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _carousel; printf "%s\n" "${COMPREPLY[@]-}"' \
    complete "$bash_script" "$@"
}
number=0
check() { # check COMMAND...: this command and those below it
  local name option offered
  grep -Fq -- ".SS \"carousel $*\"" "$man" || [ $# -eq 0 ] || fail "the manual page lacks carousel $*"
  offered=" $(complete_line carousel "$@" -- | tr '\n' ' ') "
  while read -r option; do
    [ -n "$option" ] || continue
    number=$((number + 1))
    [ "${offered/ $option /}" != "$offered" ] || fail "bash does not complete $option of carousel $*"
    grep -Fq -- "${option//-/\\-}" "$man" || [ "$option" = --help ] || fail "the manual page lacks $option"
    grep -Fq -- "$option" "$zsh_script" || fail "the zsh script lacks $option"
  done < <(options "$@")
  offered=" $(complete_line carousel "$@" "" | tr '\n' ' ') "
  while read -r name; do
    [ -n "$name" ] || continue
    [ "${offered/ $name /}" != "$offered" ] || fail "bash does not complete carousel $* $name"
    check "$@" "$name"
  done < <(commands "$@")
}
check
[ "$number" -gt 60 ] || fail "only $number options were found"
[ "$(complete_line carousel train --gpu_transport n)" = nccl ] || fail "a value is not completed"
[ "$(complete_line carousel train --gpu_transport = n)" = nccl ] || fail "a value after = is not completed"
[ "$(complete_line carousel launch -np 8 train --checkpoint_f)" = --checkpoint_fallback ] || fail "the command behind launch is not completed"
if command -v zsh >/dev/null; then zsh -n "$zsh_script" || fail "zsh refuses its script"; fi
if command -v groff >/dev/null; then
  groff -man -Tutf8 -ww "$man" 2>"$work/warnings" | grep 'checkpoint_fallback' >/dev/null || fail "groff does not show the page"
  [ ! -s "$work/warnings" ] || { cat "$work/warnings"; fail "groff warns about the manual page"; }
fi

if command -v dpkg-deb >/dev/null && command -v dpkg-shlibdeps >/dev/null; then
  (cd "$work" && cpack --config "$build/CPackConfig.cmake" -G DEB >"$work/log" 2>&1) || { cat "$work/log"; fail "cpack"; }
  package=$(find "$work" -maxdepth 1 -name 'carousel_*.deb')
  dpkg-deb -x "$package" "$work/root"
  "$work/root/usr/bin/carousel" --version >/dev/null || fail "the program of the .deb does not start"
  dpkg-deb -f "$package" Depends | grep libabsl >/dev/null || fail "the .deb does not say what it needs"
  diff <(cd "$work/usr" && find . -type f | sort) <(cd "$work/root/usr" && find . -type f | sort) || fail "the .deb holds other files"
fi
echo "what is installed works; $number options stand in the manual page and in the completion scripts"
