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

// The kinds of failure that a Runtime and Credentials distinguish. Their errors wrap one of these,
// and the cause.
var (
	// ErrImageNotFound: the registry does not know the image.
	ErrImageNotFound = errors.New("image not found")
	// ErrImageNotOnNode: under RegistryPolicyLocal, the node has no image of that name, or not all of it.
	ErrImageNotOnNode = errors.New("image not on the node")
	// ErrUnauthorized: the registry refuses the credentials, or asks for some where there are none.
	ErrUnauthorized = errors.New("unauthorized")
	// ErrPlatformNotProvided: the image has nothing for the node's platform.
	ErrPlatformNotProvided = errors.New("platform not provided")
	// ErrImageInvalid: the content is no image that a container can run.
	ErrImageInvalid = errors.New("image invalid")
	// ErrRegistryUnavailable: the registry cannot be reached, or answers with a temporary error.
	ErrRegistryUnavailable = errors.New("registry unavailable")
	// ErrNotOnMirror: the mirrors do not serve some of the content at present.
	ErrNotOnMirror = errors.New("not on mirror")
	// ErrNoProgress: the pull made no progress for NoProgressTimeout.
	ErrNoProgress = errors.New("no progress")
	// ErrInsufficientDisk: the image would leave less of the disk free than it must.
	ErrInsufficientDisk = errors.New("insufficient disk space")
	// ErrRuntimeUnavailable: the runtime does not answer.
	ErrRuntimeUnavailable = errors.New("container runtime unavailable")
	// ErrUnsupportedRuntime: the runtime is too old.
	ErrUnsupportedRuntime = errors.New("container runtime not supported")
	// ErrCredentialsUnavailable: the credential endpoint does not answer at present.
	ErrCredentialsUnavailable = errors.New("credentials unavailable")
	// ErrCredentialsDenied: the credential endpoint denies this node credentials for the image. The
	// cause can be that agent and controller have seen different specs, so it is tried again.
	ErrCredentialsDenied = errors.New("credentials denied")
)

// failure is what an error means for an entry.
type failure struct {
	reason string
	// uncounted: the error says nothing about the image, so it does not count towards the retry
	// limit.
	uncounted bool
}

// failuresByError is in order of precedence. For example, an error that wraps both ErrNotOnMirror
// and ErrNoProgress means that the pull waited for the mirror.
var failuresByError = []struct {
	err     error
	failure failure
}{
	{ErrRuntimeUnavailable, failure{reason: v1alpha1.ReasonRuntimeUnavailable, uncounted: true}},
	{ErrUnsupportedRuntime, failure{reason: v1alpha1.ReasonUnsupportedRuntime, uncounted: true}},
	{ErrCredentialsUnavailable, failure{reason: v1alpha1.ReasonCredentialsUnavailable}},
	{ErrCredentialsDenied, failure{reason: v1alpha1.ReasonCredentialsUnavailable}},
	{ErrInsufficientDisk, failure{reason: v1alpha1.ReasonInsufficientDisk}},
	{ErrPlatformNotProvided, failure{reason: v1alpha1.ReasonPlatformNotProvided}},
	{ErrImageInvalid, failure{reason: v1alpha1.ReasonImageInvalid}},
	{ErrUnauthorized, failure{reason: v1alpha1.ReasonImagePullUnauthorized}},
	{ErrImageNotFound, failure{reason: v1alpha1.ReasonImageNotFound}},
	{ErrImageNotOnNode, failure{reason: v1alpha1.ReasonImageNotOnNode}},
	{ErrNotOnMirror, failure{reason: v1alpha1.ReasonNotOnMirror}},
	{ErrNoProgress, failure{reason: v1alpha1.ReasonNoProgress}},
	{ErrRegistryUnavailable, failure{reason: v1alpha1.ReasonRegistryUnavailable}},
}

func classify(err error) failure {
	for _, kind := range failuresByError {
		if errors.Is(err, kind.err) {
			return kind.failure
		}
	}
	return failure{reason: v1alpha1.ReasonPullFailed}
}

// maxMessage is the schema's limit for status messages, in bytes.
const maxMessage = 1024

// Registries redirect to URLs with a signature in the query, and errors quote those URLs. A status
// gets neither the query of a URL nor its user information.
var (
	urlQuery    = regexp.MustCompile(`(https?://[^\s"'?]+)\?[^\s"']+`)
	urlUserinfo = regexp.MustCompile(`(https?://)[^\s/"'@]+@`)
)

// statusMessage is an error's text in the form of a status message: one line, without the secrets
// of URLs, not longer than maxMessage.
func statusMessage(err error) string { return excerpt.Of(oneLine(err.Error()), maxMessage) }

// oneLine is a text in one line, without the secrets of URLs.
func oneLine(text string) string {
	text = urlUserinfo.ReplaceAllString(urlQuery.ReplaceAllString(text, "$1"), "$1")
	return strings.ReplaceAll(strings.ToValidUTF8(text, ""), "\n", "; ")
}
