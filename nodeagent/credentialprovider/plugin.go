// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package credentialprovider

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	credentialproviderv1 "k8s.io/kubelet/pkg/apis/credentialprovider/v1"

	"github.com/sluice-dev/sluice/internal/duration"
	"github.com/sluice-dev/sluice/internal/excerpt"
)

const (
	// timeout is the kubelet's.
	timeout = time.Minute
	// silence is for how long a plugin that gave no answer in time is not asked again: a pull waits for
	// it in one of the agent's slots. It is the longest that a kubelet waits between two tries to pull.
	silence = 5 * time.Minute
	// waitDelay is how long the output of a plugin that has ended may stay open in another process.
	waitDelay = 5 * time.Second

	maxAnswer = 1 << 20
	maxStderr = 4 << 10
	// maxLine is for the line of it that is logged.
	maxLine = 256
)

var errNoAnswer = errors.New("no answer")

// plugin is the program of a provider.
type plugin struct {
	path       string
	args, env  []string
	apiVersion string
	timeout    time.Duration
	log        logr.Logger
}

// run asks the plugin about a repository. Its error has nothing that the plugin wrote: that may be a
// credential.
func (p *plugin) run(ctx context.Context, repository string) (*credentialproviderv1.CredentialProviderResponse, error) {
	request, err := json.Marshal(credentialproviderv1.CredentialProviderRequest{
		TypeMeta: metav1.TypeMeta{APIVersion: p.apiVersion, Kind: "CredentialProviderRequest"}, Image: repository,
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	stdout := &output{max: maxAnswer, exceeded: cancel}
	stderr := &output{max: maxStderr}
	command := exec.CommandContext(ctx, p.path, p.args...)
	command.Env = append(os.Environ(), p.env...)
	command.Stdin, command.Stdout, command.Stderr = bytes.NewReader(request), stdout, stderr
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	command.Cancel = func() error { return syscall.Kill(-command.Process.Pid, syscall.SIGKILL) }
	command.WaitDelay = waitDelay

	err = command.Run()
	switch {
	case stdout.full:
		err = fmt.Errorf("its answer has more than %d bytes", maxAnswer)
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		err = fmt.Errorf("%w within %s", errNoAnswer, duration.Format(p.timeout))
	case ctx.Err() != nil:
		return nil, ctx.Err()
	}
	var response *credentialproviderv1.CredentialProviderResponse
	if err == nil {
		response, err = decode(stdout.text.Bytes(), p.apiVersion)
	}
	if err != nil {
		line, _, _ := strings.Cut(strings.TrimSpace(stderr.text.String()), "\n")
		p.log.Info("Credential provider failed", "repository", repository, "cause", err.Error(), "stderr", excerpt.Of(line, maxLine))
	}
	return response, err
}

// decode reads an answer. The error of the parser is left out: it may quote what it could not parse.
func decode(text []byte, apiVersion string) (*credentialproviderv1.CredentialProviderResponse, error) {
	var response credentialproviderv1.CredentialProviderResponse
	if json.Unmarshal(text, &response) != nil {
		return nil, errors.New("its answer is not JSON, or not of the right form")
	}
	if response.Kind != "CredentialProviderResponse" || response.APIVersion != apiVersion {
		return nil, fmt.Errorf("its answer must be a CredentialProviderResponse of %s", apiVersion)
	}
	return &response, nil
}

// output is what a plugin writes, up to a limit. The rest is dropped.
type output struct {
	text bytes.Buffer
	max  int
	full bool
	// exceeded is called when something is dropped; it may be nil.
	exceeded func()
}

// Write implements io.Writer.
func (o *output) Write(p []byte) (int, error) {
	room := min(len(p), o.max-o.text.Len())
	o.text.Write(p[:room])
	if room < len(p) && !o.full {
		o.full = true
		if o.exceeded != nil {
			o.exceeded()
		}
	}
	return len(p), nil
}
