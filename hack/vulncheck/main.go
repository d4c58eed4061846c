// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Command vulncheck runs govulncheck on our module, and fails if our code calls something
// with a known vulnerability, unless accepted.yaml has the reason why that does no harm, by
// identifier. Where the database of vulnerabilities cannot be reached, it says that nothing was
// checked, and does not fail: that says nothing about the code.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

func main() {
	db := flag.String("db", "https://vuln.go.dev", "database of vulnerabilities, https:// or file://")
	accepted := flag.String("accepted", "hack/vulncheck/accepted.yaml", "file with the reason why a vulnerability does no harm, by its identifier")
	modfile := flag.String("modfile", "tools/vulncheck/go.mod", "module that pins govulncheck")
	flag.Parse()
	if err := run(context.Background(), os.Stdout, *db, *accepted, *modfile, "."); err != nil {
		fmt.Fprintln(os.Stderr, "vulncheck:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, db, acceptedFile, modfile, module string) error {
	if err := reach(ctx, db); err != nil {
		fmt.Fprintf(out, "vulncheck: NOT CHECKED: the database of vulnerabilities cannot be reached: %v\n", err)
		return nil
	}
	text, err := os.ReadFile(acceptedFile)
	if err != nil {
		return err
	}
	reasons := map[string]string{}
	if err := yaml.UnmarshalStrict(text, &reasons); err != nil {
		return fmt.Errorf("read %s: %w", acceptedFile, err)
	}
	if modfile, err = filepath.Abs(modfile); err != nil {
		return err
	}
	called, err := check(ctx, db, modfile, module)
	if err != nil {
		return fmt.Errorf("run govulncheck: %w", err)
	}
	return report(out, called, reasons)
}

// reach fails if the database does not answer.
func reach(ctx context.Context, db string) error {
	if folder, ok := strings.CutPrefix(db, "file://"); ok {
		_, err := os.Stat(folder)
		return err
	}
	index, err := url.JoinPath(db, "index/db.json")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, index, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", index, response.Status)
	}
	return nil
}

// check returns what a module calls that has a vulnerability, by the identifier of that.
func check(ctx context.Context, db, modfile, module string) (map[string]string, error) {
	command := exec.CommandContext(ctx, "go", "tool", "-modfile="+modfile, "govulncheck", "-C", module, "-db", db, "-format", "json", "./...")
	command.Stderr = os.Stderr
	pipe, err := command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := command.Start(); err != nil {
		return nil, err
	}
	called, err := findings(pipe)
	return called, errors.Join(err, command.Wait())
}

// frame is one step of the way to what is vulnerable, which is the first.
type frame struct {
	Module   string `json:"module"`
	Version  string `json:"version"`
	Package  string `json:"package"`
	Receiver string `json:"receiver"`
	Function string `json:"function"`
}

// findings reads what govulncheck prints. What is only imported, or only required, is left out.
func findings(in io.Reader) (map[string]string, error) {
	summaries, called := map[string]string{}, map[string]string{}
	for decoder := json.NewDecoder(bufio.NewReader(in)); ; {
		var message struct {
			OSV *struct {
				ID      string `json:"id"`
				Summary string `json:"summary"`
			} `json:"osv"`
			Finding *struct {
				OSV          string  `json:"osv"`
				FixedVersion string  `json:"fixed_version"`
				Trace        []frame `json:"trace"`
			} `json:"finding"`
		}
		err := decoder.Decode(&message)
		switch {
		case errors.Is(err, io.EOF):
			return called, nil
		case err != nil:
			return nil, fmt.Errorf("read what govulncheck printed: %w", err)
		case message.OSV != nil:
			summaries[message.OSV.ID] = message.OSV.Summary
		case message.Finding != nil && len(message.Finding.Trace) > 0 && message.Finding.Trace[0].Function != "":
			f := message.Finding
			first, last := f.Trace[0], f.Trace[len(f.Trace)-1]
			fixed := "not fixed"
			if f.FixedVersion != "" {
				fixed = "fixed in " + f.FixedVersion
			}
			called[f.OSV] = fmt.Sprintf("%s: %s of %s %s (%s), called by %s", summaries[f.OSV], first, first.Module, first.Version, fixed, last)
		}
	}
}

func (f frame) String() string {
	name := f.Function
	if f.Receiver != "" {
		name = f.Receiver + "." + name
	}
	return f.Package + "." + name
}

// report prints each vulnerability that is called, and fails on those without a reason, and on
// reasons for what is not called any more.
func report(out io.Writer, called, reasons map[string]string) error {
	var wrong []error
	for _, id := range slices.Sorted(maps.Keys(called)) {
		if reason := reasons[id]; reason != "" {
			fmt.Fprintf(out, "%s %s\n  accepted: %s\n", id, called[id], reason)
			continue
		}
		wrong = append(wrong, fmt.Errorf("%s %s: update it, or write the reason why it does no harm into accepted.yaml", id, called[id]))
	}
	for _, id := range slices.Sorted(maps.Keys(reasons)) {
		if called[id] == "" {
			wrong = append(wrong, fmt.Errorf("%s is not called any more: remove it from accepted.yaml", id))
		}
	}
	if len(wrong) == 0 {
		fmt.Fprintf(out, "vulncheck: checked: %d known vulnerabilities are called, each accepted for a reason\n", len(called))
	}
	return errors.Join(wrong...)
}
