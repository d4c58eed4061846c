// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRunDescribesWhatTheSourceMakes(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, `package x
var a = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "x_total", Help: "Counts " + "things."}, []string{"result"})
var b = prometheus.NewGauge(prometheus.GaugeOpts{Name: "x_now", Help: "Now."})
var c = prometheus.NewRegistry()
`)
	var out strings.Builder
	if err := run(&out, []string{"The thing=" + dir}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"## The thing\n",
		"| `x_now` | gauge | – | Now. |\n| `x_total` | counter | `result` | Counts things. |\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("printed\n%s\nwithout %q", &out, want)
		}
	}
}

func TestRunFailsOnWhatItCannotRead(t *testing.T) {
	for reason, source := range map[string]string{
		"a name that is computed":   `package x; var a = prometheus.NewGauge(prometheus.GaugeOpts{Name: name(), Help: "x"})`,
		"a metric without help":     `package x; var a = prometheus.NewGauge(prometheus.GaugeOpts{Name: "x"})`,
		"labels from elsewhere":     `package x; var a = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "x", Help: "x"}, labels)`,
		"options from elsewhere":    `package x; var a = prometheus.NewGauge(options)`,
		"a folder without a metric": `package x`,
	} {
		t.Run(reason, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, source)
			var out strings.Builder
			if err := run(&out, []string{"The thing=" + dir}); err == nil {
				t.Errorf("printed %q, want an error", &out)
			}
		})
	}
}

func write(t *testing.T, dir, source string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "x.go"), []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
}
