// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package logging

import (
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
)

func parse(t *testing.T, line string) Options {
	t.Helper()
	var o Options
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	o.AddFlags(flags)
	if err := flags.Parse(strings.Fields(line)); err != nil {
		t.Fatal(err)
	}
	return o
}

func TestFlags(t *testing.T) {
	for _, tt := range []struct {
		reason, line string
		want         Options
		wantErr      string
	}{
		{"a program reads its own lines best", "", Options{Format: FormatJSON}, ""},
		{"a person reads text", "--log-format=text --verbosity=1", Options{Format: FormatText, Verbosity: 1}, ""},
		{"the short flag", "-v 2", Options{Format: FormatJSON, Verbosity: 2}, ""},
		{"an unknown format", "--log-format=xml", Options{}, `--log-format must be json or text, not "xml"`},
		{"less than nothing", "-v -1", Options{}, "--verbosity must be 0 or more, not -1"},
		{
			"both at once", "--log-format= -v -1", Options{},
			"--log-format must be json or text, not \"\"\n--verbosity must be 0 or more, not -1",
		},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			got := parse(t, tt.line)
			err := got.Validate()
			if tt.wantErr != "" {
				if err == nil || err.Error() != tt.wantErr {
					t.Errorf("err = %v, want %s", err, tt.wantErr)
				}
				return
			}
			if err != nil || got != tt.want {
				t.Errorf("got %+v, err %v; want %+v", got, err, tt.want)
			}
		})
	}
}

// logEach logs once at each level.
func logEach(o Options, w io.Writer) {
	log := o.Logger(w).WithName("agent")
	log.Info("Started pull", "node", "a", "attempts", 2)
	log.V(1).Info("Waited")
	log.V(2).Info("Asked")
	log.Error(errors.New("no route"), "Could not ask")
}

func TestShape(t *testing.T) {
	var text strings.Builder
	logEach(Options{Format: FormatJSON, Verbosity: 2}, &text)
	var got []map[string]any
	for line := range strings.Lines(text.String()) {
		var record map[string]any
		if err := json.Unmarshal([]byte(line), &record); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		at, _ := record["time"].(string)
		if _, err := time.Parse(time.RFC3339Nano, at); err != nil {
			t.Errorf("time: %v", err)
		}
		delete(record, "time")
		got = append(got, record)
	}
	want := []map[string]any{
		{"level": "INFO", "msg": "Started pull", "logger": "agent", "node": "a", "attempts": 2.0},
		{"level": "DEBUG", "msg": "Waited", "logger": "agent"},
		{"level": "DEBUG", "msg": "Asked", "logger": "agent"},
		{"level": "ERROR", "msg": "Could not ask", "logger": "agent", "err": "no route"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestTextHasTheSameKeys(t *testing.T) {
	var text strings.Builder
	logEach(Options{Format: FormatText, Verbosity: 1}, &text)
	for _, want := range []string{
		`level=INFO msg="Started pull" logger=agent node=a attempts=2` + "\n",
		"level=DEBUG msg=Waited logger=agent\n",
		`level=ERROR msg="Could not ask" logger=agent err="no route"` + "\n",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("%s lacks %s", text.String(), want)
		}
	}
}

func TestVerbosity(t *testing.T) {
	for verbosity, want := range []int{2, 3, 4} {
		var text strings.Builder
		logEach(Options{Format: FormatJSON, Verbosity: verbosity}, &text)
		if got := strings.Count(text.String(), "\n"); got != want {
			t.Errorf("verbosity %d: %d lines, want %d", verbosity, got, want)
		}
	}
}
