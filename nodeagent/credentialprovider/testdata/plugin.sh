#!/bin/sh
# A credential provider plugin. Its first argument says what it does.
request=$(cat)
printf '%s %s %s %s\n' "$2" "$INHERITED" "$OWN" "$request" >>"$RUNS"
case $1 in
answer) printf '%s' "$ANSWER" ;;
fail)
	printf '%s' "$ANSWER"
	printf 'no connection\nwith the token hunter2\n' >&2
	exit 3
	;;
die) kill -KILL $$ ;;
flood) exec yes hunter2 ;;
hang)
	exec 3>"$FIFO"
	sleep 3600 &
	echo hangs >&3
	wait
	;;
esac
