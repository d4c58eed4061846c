// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"errors"
	"regexp"
	"strings"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/excerpt"
)

// Kinds of failure that a Runtime tells apart. What it returns wraps one of them
// beside the cause.
var (
	// ErrImageNotFound: the registry does not know the image.
	ErrImageNotFound = errors.New("image not found")
	// ErrUnauthorized: the registry refuses the credentials, or asks for some.
	ErrUnauthorized = errors.New("unauthorized")
	// ErrPlatformNotProvided: the image has nothing for the node's platform.
	ErrPlatformNotProvided = errors.New("platform not provided")
	// ErrRegistryUnavailable: the registry cannot be reached, or is in trouble.
	ErrRegistryUnavailable = errors.New("registry unavailable")
	// ErrNotOnMirror: some content is not to be had from the mirrors at present.
	ErrNotOnMirror = errors.New("not on mirror")
	// ErrNoProgress: the pull received nothing for too long.
	ErrNoProgress = errors.New("no progress")
	// ErrInsufficientDisk: the image would bring the disk past the eviction line.
	ErrInsufficientDisk = errors.New("insufficient disk space")
	// ErrRuntimeUnavailable: the runtime does not answer.
	ErrRuntimeUnavailable = errors.New("container runtime unavailable")
	// ErrUnsupportedRuntime: the runtime is too old.
	ErrUnsupportedRuntime = errors.New("container runtime not supported")
	// ErrCredentialsUnavailable: nobody says at present which credentials to use.
	ErrCredentialsUnavailable = errors.New("credentials unavailable")
	// ErrCredentialsRefused: this node is given none for the image. A spec that is
	// older or newer than the controller's can be the cause, so it is tried again.
	ErrCredentialsDenied = errors.New("credentials denied")
)

// failure is what the agent makes of an error.
type failure struct {
	reason string
	// uncounted: it says nothing of the image, so it uses up no try.
	uncounted bool
}

// kinds is in the order of precedence: a pull that was stopped for want of progress
// while the mirror was missing a layer is told as the latter.
var kinds = []struct {
	err     error
	failure failure
}{
	{ErrRuntimeUnavailable, failure{reason: v1alpha1.ReasonRuntimeUnavailable, uncounted: true}},
	{ErrUnsupportedRuntime, failure{reason: v1alpha1.ReasonUnsupportedRuntime, uncounted: true}},
	{ErrCredentialsUnavailable, failure{reason: v1alpha1.ReasonCredentialsUnavailable}},
	{ErrCredentialsDenied, failure{reason: v1alpha1.ReasonCredentialsUnavailable}},
	{ErrInsufficientDisk, failure{reason: v1alpha1.ReasonInsufficientDisk}},
	{ErrPlatformNotProvided, failure{reason: v1alpha1.ReasonPlatformNotProvided}},
	{ErrUnauthorized, failure{reason: v1alpha1.ReasonImagePullUnauthorized}},
	{ErrImageNotFound, failure{reason: v1alpha1.ReasonImageNotFound}},
	{ErrNotOnMirror, failure{reason: v1alpha1.ReasonNotOnMirror}},
	{ErrNoProgress, failure{reason: v1alpha1.ReasonNoProgress}},
	{ErrRegistryUnavailable, failure{reason: v1alpha1.ReasonRegistryUnavailable}},
}

func classify(err error) failure {
	for _, kind := range kinds {
		if errors.Is(err, kind.err) {
			return kind.failure
		}
	}
	return failure{reason: v1alpha1.ReasonPullFailed}
}

// maxMessage is the schema's bound on status messages.
const maxMessage = 1024

// Registries redirect to storage with signatures in the query, and their URLs
// come back in errors: nothing behind a question mark reaches a status. Nor does
// what stands before an @ in a URL.
var (
	urlQuery    = regexp.MustCompile(`(https?://[^\s"'?]+)\?[^\s"']+`)
	urlUserinfo = regexp.MustCompile(`(https?://)[^\s/"'@]+@`)
)

func message(err error) string {
	text := urlUserinfo.ReplaceAllString(urlQuery.ReplaceAllString(err.Error(), "$1"), "$1")
	text = strings.ReplaceAll(strings.ToValidUTF8(text, ""), "\n", "; ")
	return excerpt.Of(text, maxMessage)
}
