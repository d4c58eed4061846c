// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package defaults holds together what the programs, the chart and its guide call a default.
//
//	a flag's default in the code  =  the flag in config/install.yaml  =  values.yaml  =  docs/install.md
//	                 Flags (each program's tests)        test/chart          test/chart
//
// config/install.yaml is the chart, rendered with its default values.
package defaults

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
)

// Flags fails the test unless every flag of a program has one default: either the chart sets
// the flag, to the default that it has in the code; or a row of docs/install.md names the flag
// and that default. A program is "controller" or "agent", and root is the repository's folder.
//
// Wired are the flags that say where the other parts of an installation are: the chart sets
// them, and without it they are empty.
func Flags(t *testing.T, root, program string, flags *pflag.FlagSet, wired ...string) {
	t.Helper()
	set := arguments(t, root, program)
	documented := furtherFlags(t, root, program)
	flags.VisitAll(func(flag *pflag.Flag) {
		value, isSet := set[flag.Name]
		row, isDocumented := documented[flag.Name]
		delete(set, flag.Name)
		delete(documented, flag.Name)
		switch {
		case isSet && isDocumented:
			t.Errorf("docs/install.md says that no value sets --%s, but the chart does", flag.Name)
		case slices.Contains(wired, flag.Name):
			if !isSet || flag.DefValue != "" {
				t.Errorf("--%s is to be set by the chart and empty without it: it is set to %q, and %q without", flag.Name, value, flag.DefValue)
			}
		case isSet:
			expectDefault(t, flag, value, "the chart")
		case isDocumented:
			expectDefault(t, flag, row, "docs/install.md")
		default:
			t.Errorf("--%s of the %s is new: let a value of the chart set it, or give it a row among the further flags in docs/install.md",
				flag.Name, program)
		}
	})
	for name := range set {
		t.Errorf("the chart sets --%s, which the %s does not have", name, program)
	}
	for name := range documented {
		t.Errorf("docs/install.md describes --%s, which the %s does not have", name, program)
	}
}

// expectDefault compares by meaning: 1m is 1m0s.
func expectDefault(t *testing.T, flag *pflag.Flag, text, where string) {
	t.Helper()
	if err := flag.Value.Set(text); err != nil {
		t.Errorf("%s has %q for --%s: %v", where, text, flag.Name, err)
	} else if got := flag.Value.String(); got != flag.DefValue {
		t.Errorf("the default of --%s is %s, but in %s it is %s", flag.Name, flag.DefValue, where, got)
	}
}

// arguments are the flags that the chart gives a program, with their values.
func arguments(t *testing.T, root, program string) map[string]string {
	t.Helper()
	set := make(map[string]string)
	for _, argument := range Pod(t, root, program).Containers[0].Args {
		name, value, ok := strings.Cut(strings.TrimPrefix(argument, "--"), "=")
		if !ok {
			t.Errorf("%s is not written --flag=value", argument)
		}
		// What the kubelet puts in its place: the chart installs into this namespace.
		set[name] = strings.ReplaceAll(value, "$(POD_NAMESPACE)", "sluice-system")
	}
	return set
}

// Pod is that of a program, as the chart installs it by default.
func Pod(t *testing.T, root, program string) corev1.PodSpec {
	t.Helper()
	text := read(t, root, "config/install.yaml")
	for decoder := utilyaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096); ; {
		var workload appsv1.Deployment // or a DaemonSet, which has its template in the same place
		switch err := decoder.Decode(&workload); {
		case errors.Is(err, io.EOF):
			t.Fatalf("config/install.yaml has no workload of the %s", program)
		case err != nil:
			t.Fatal(err)
		}
		if pod := workload.Spec.Template.Spec; len(pod.Containers) > 0 && workload.Name == "sluice-"+program {
			return pod
		}
	}
}

// furtherFlag is a row of the guide's table of flags that no value sets:
// | `--flag` | both | `default` | meaning |.
var furtherFlag = regexp.MustCompile("(?m)^\\| `--([a-z-]+)`(?:, `-[a-z]`)? \\| (controller|agent|both) \\| `(.*?)` \\|")

// furtherFlags are the flags of a program that the guide describes, with their defaults.
func furtherFlags(t *testing.T, root, program string) map[string]string {
	t.Helper()
	documented := make(map[string]string)
	for _, row := range furtherFlag.FindAllStringSubmatch(string(read(t, root, "docs/install.md")), -1) {
		if row[2] == program || row[2] == "both" {
			documented[row[1]] = strings.Trim(row[3], `"`)
		}
	}
	return documented
}

func read(t *testing.T, root, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(name)))
	if err != nil {
		t.Fatal(err)
	}
	return text
}
