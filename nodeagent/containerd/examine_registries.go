// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/url"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"

	"github.com/sluice-dev/sluice/nodeagent"
	"github.com/sluice-dev/sluice/nodeagent/containerd/mirror"
)

// examineRegistries looks at the hosts.toml files, and at the mirrors that they name.
func (r *Runtime) examineRegistries(ctx context.Context) (findings []nodeagent.Finding) {
	registries, err := r.registries.Registries()
	if err != nil {
		return []nodeagent.Finding{failure("hosts.toml", "%v: mount the folder here", err)}
	}
	mirrors := &mirror.Client{UserAgent: r.UserAgent, Throttle: &r.throttle}
	known := map[string]bool{}
	for _, registry := range registries {
		subject := "hosts.toml of " + registry
		hosts, err := r.registries.Read(ctx, registry, nil)
		if err != nil {
			findings = append(findings, failure(subject, "%v", err))
			continue
		}
		defer hosts.Close()
		findings = append(findings, examineHosts(subject, &hosts)...)
		for _, host := range hosts.Mirrors {
			if !known[mirrorURL(host)] {
				known[mirrorURL(host)] = true
				mirrors.Hosts = append(mirrors.Hosts, host)
			}
		}
	}
	if len(mirrors.Hosts) == 0 && !r.throttle.Young() {
		return append(findings, warning("mirror", "no hosts.toml below %s names one that the agent can ask, so that each node pulls from the registries: "+
			"install Spegel, or name its mirror there", r.RegistryConfigPath))
	}
	for i, err := range mirrors.Reach(ctx) {
		findings = append(findings, examineMirror(mirrors.Hosts[i], err))
	}
	return findings
}

// examineHosts looks at the configuration of one registry.
func examineHosts(subject string, hosts *mirror.Hosts) (findings []nodeagent.Finding) {
	if hosts.Rejected != nil {
		findings = append(findings, warning(subject, "containerd goes on as if it were not there, so mend it: %v", hosts.Rejected))
	}
	if hosts.Unusable != nil {
		text := "the agent leaves out what containerd may use: " + hosts.Unusable.Error()
		if errors.Is(hosts.Unusable, fs.ErrNotExist) {
			text += ": let the agent see the file under that path, in a folder of agent.containerd.certsDir or agent.trustDirs"
		}
		findings = append(findings, warning(subject, "%s", text))
	}
	if len(findings) > 0 {
		return findings
	}
	if len(hosts.Mirrors) == 0 {
		return []nodeagent.Finding{good(subject, "names no mirror")}
	}
	var urls []string
	for _, host := range hosts.Mirrors {
		urls = append(urls, mirrorURL(host))
	}
	return []nodeagent.Finding{good(subject, "names %s", strings.Join(urls, ", "))}
}

func examineMirror(host docker.RegistryHost, err error) nodeagent.Finding {
	subject := "mirror " + mirrorURL(host)
	switch {
	case err == nil:
		return good(subject, "answers")
	case errors.Is(err, mirror.ErrStarting):
		return good(subject, "does not listen yet")
	case isLoopback(host.Host):
		return warning(subject, "does not answer the agent: %v: have hosts.toml name an address of the node, or set agent.hostNetwork", err)
	default:
		return warning(subject, "does not answer the agent: %v: see that it runs, and that Pods reach it", err)
	}
}

// isLoopback reports whether an address is another one in a Pod than on its node.
func isLoopback(address string) bool {
	host := (&url.URL{Host: address}).Hostname()
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func mirrorURL(host docker.RegistryHost) string {
	return (&url.URL{Scheme: host.Scheme, Host: host.Host, Path: strings.TrimSuffix(host.Path, "/v2")}).String()
}
