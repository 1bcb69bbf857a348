#!/usr/bin/env bash
# See --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# All files whose first line is that of a shell script. grep -s: git lists files that have been deleted since.
list() {
	git ls-files -z --cached --others --exclude-standard |
		{ xargs -0 grep -slIE -m 1 '^#! ?/.*[/ ](ba|da|k)?sh( |$)' || true; }
}

case ${1-} in
	'') ;;
	--list)
		list
		exit
		;;
	-h | --help)
		cat <<'HELP'
usage: scripts/check-shell.sh [--list]

Finds what macOS does not have in the shell scripts and makefiles of the
repository: constructs newer than bash 3.2 and make 3.81, and options of GNU's
sed, grep, xargs, date, find and others. Prints file, line and what to use
instead. --list prints the names of the scripts.

An array that is never empty may be expanded without a guard on a line that
says so in a comment: # never empty
HELP
		exit
		;;
	*)
		echo "check-shell: unknown argument $1; see --help" >&2
		exit 2
		;;
esac

# The patterns are written so that they do not match themselves ([m]apfile). B and E are the edges of a word.
scripts=$(list)
makefiles=$(git ls-files --cached --others --exclude-standard Makefile '*.mk')
# shellcheck disable=SC2086 # one word a file
awk '
	function rule(pattern, instead) {
		gsub(/<B>/, "(^|[^A-Za-z0-9_-])", pattern)
		gsub(/<E>/, "([^A-Za-z0-9_-]|$)", pattern)
		if ($0 !~ pattern) return
		printf "%s:%d: %s\n    %s\n", FILENAME, FNR, instead, $0
		found = 1
	}
	/^[[:space:]]*#/ { next }
	{
		rule("<B>([m]apfile|readarra[y])<E>", "bash 4: read lines with while read")
		rule("<B>(declare|local|typeset) -[a-z]*[A]", "bash 4: no associative arrays; use case or a file")
		rule("<B>(declare|local|typeset) -[a-z]*[n]", "bash 4.3: no name references")
		rule("<B>(declare|local|typeset) -[a-z]*[gul]", "bash 4: no -g, -u, -l")
		rule("\\$\\{[A-Za-z_0-9]+(,,|,[}]|\\^)", "bash 4: use tr to change case")
		rule("\\$\\{[A-Za-z_0-9]+@[A-Za-z]\\}", "bash 4.4: use printf %q")
		rule("[|]&", "bash 4: use 2>&1 |")
		rule("&>[>]", "bash 4: use >>FILE 2>&1")
		rule("<B>[c]oproc<E>", "bash 4: use a named pipe")
		rule("[i]nherit_errexit|[g]lobstar|[l]astpipe", "bash 4: no such shell option")
		rule("<B>wait -[np]", "bash 4.3: wait for each process id")
		rule("\\$\\{?[E]POCH(SECONDS|REALTIME)", "bash 5: use date +%s")
		rule("\\$\\{?[B]ASHPID<E>", "bash 4: use sh -c with its own $$")
		rule("<B>printf .*%\\([^)]*\\)[T]", "bash 4.2: use date")
		rule("\\[-[0-9]+\\]", "bash 4.3: no negative index")
		rule("(^|[^<])[<][(]", "the failure of the command is not seen: use a file or a pipe")
		rule("\\[\\[ -[vR] ", "bash 4.2: use ${x+set}")
		rule("(;;[&]|;[&]([^&]|$))", "bash 4: no fall-through in case")
		rule("[{][0-9]+\\.\\.[0-9]+\\.\\.", "bash 4: no step in a range")
		if ($0 !~ /# never empty/ && $0 !~ /\[@\]\+/) rule("\\$\\{[A-Za-z_][A-Za-z_0-9]*\\[[@*]\\]\\}", "bash 3.2 takes an empty array for unset: ${x[@]+\"${x[@]}\"}, or say # never empty")
		rule("<B>[s]ed( -[a-zA-Z]+)* -[a-zA-Z]*i", "GNU: write to another file, then mv")
		rule("<B>[s]ed .*\\\\[tswdbn+?|]", "GNU: use POSIX classes, or a literal character")
		rule("<B>[g]rep( -[a-zA-Z]+)* -[a-zA-Z]*P", "GNU: use grep -E")
		rule("<B>[g]rep .*\\\\[swdbSWD]", "GNU: use POSIX classes")
		rule("<B>[x]args .*(-r|-d|--no-run-if-empty|--delimiter)<E>", "GNU: xargs -0, or while read")
		rule("<B>[d]ate .*(-d|--date|-I|--iso-8601|-r|%N)", "GNU: date +FORMAT only")
		rule("<B>[r]eadlink .*-[efm]<E>|<B>[r]ealpath<E>", "GNU: use cd and pwd")
		rule("<B>[s]tat .*(-c|--format)", "GNU: use wc -c, ls or find")
		rule("<B>[f]ind .*-(printf|regextype|readable|executable)<E>", "GNU: use -exec or while read")
		rule("<B>[s]ort .*(-V|--version-sort)", "GNU: compare the parts as numbers")
		rule("<B>[m]ktemp .*(--tmpdir|-p|--suffix)", "GNU: mktemp -d, or a template that ends in XXXXXX")
		rule("<B>([t]imeout|[n]proc|[t]ac|[s]huf|[s]etsid)( |$)", "not on macOS")
		rule("<B>[h]ead .*-n ?-|<B>[t]ail .*--[a-z]", "GNU: use sed or awk")
		rule("<B>[c]p .*(--parents|-t)<E>", "GNU: mkdir -p, then cp")
	}
	FILENAME ~ /(Makefile|[.]mk)$/ {
		rule("^[A-Za-z_]+ *(!=|::=)", "make 4: := $(shell ...)")
		rule("&:", "make 4.3: no grouped targets; one rule for each file")
		rule("[$][(]file ", "make 4: write the file in a recipe")
		rule("^(undefine|load|[.](ONESHELL|SHELLFLAGS|EXTRA_PREREQS))", "make 3.82 or later")
	}
	END { exit found }
' $scripts $makefiles
