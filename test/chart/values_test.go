// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package chart_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
)

// What each value does.
func TestValues(t *testing.T) {
	hasFlag := func(workload, flag string) func(*testing.T, manifest) {
		return func(t *testing.T, m manifest) {
			if flags := m.flags(t, workload); !slices.Contains(flags, flag) {
				t.Errorf("%s lacks %s: %v", workload, flag, flags)
			}
		}
	}
	pod := func(workload string, check func(corev1.PodTemplateSpec) bool) func(*testing.T, manifest) {
		return func(t *testing.T, m manifest) {
			if !check(m.pods(t)[workload]) {
				t.Errorf("%s: %+v", workload, m.pods(t)[workload])
			}
		}
	}
	image := func(workload, want string) func(*testing.T, manifest) {
		return pod(workload, func(p corev1.PodTemplateSpec) bool { return p.Spec.Containers[0].Image == want })
	}
	present := func(kind, name string) func(*testing.T, manifest) {
		return func(t *testing.T, m manifest) {
			if m.find(kind, name) == nil {
				t.Errorf("there is no %s %s", kind, name)
			}
		}
	}
	absent := func(kind, name string) func(*testing.T, manifest) {
		return func(t *testing.T, m manifest) {
			if m.find(kind, name) != nil {
				t.Errorf("there is a %s %s", kind, name)
			}
		}
	}
	digest := "sha256:" + strings.Repeat("a", 64)
	for _, tt := range []struct {
		values string
		check  func(*testing.T, manifest)
	}{
		{"image: {registry: registry.example/team, tag: v9}", image(controllerPod, "registry.example/team/sluice-controller:v9")},
		{"image: {registry: registry.example/team, tag: v9}", image(agentPod, "registry.example/team/sluice-agent:v9")},
		{"image: {tag: v9}", image("Job/sluice-crds", "ghcr.io/sluice-dev/sluice-controller:v9")},
		{"{image: {tag: v9}, controller: {imageDigest: '" + digest + "'}}", image(controllerPod, "ghcr.io/sluice-dev/sluice-controller:v9@"+digest)},
		{"{image: {tag: v9}, agent: {imageDigest: '" + digest + "'}}", image(agentPod, "ghcr.io/sluice-dev/sluice-agent:v9@"+digest)},
		{
			values: "image: {pullPolicy: Always}",
			check:  pod(agentPod, func(p corev1.PodTemplateSpec) bool { return p.Spec.Containers[0].ImagePullPolicy == corev1.PullAlways }),
		},
		{
			values: "image: {pullSecrets: [{name: s}]}",
			check:  pod("Job/sluice-uninstall", func(p corev1.PodTemplateSpec) bool { return p.Spec.ImagePullSecrets[0].Name == "s" }),
		},
		{"image: {pullSecrets: [{name: s}]}", pod(agentPod, func(p corev1.PodTemplateSpec) bool { return p.Spec.ImagePullSecrets[0].Name == "s" })},

		{"distribution: {upstreamPullers: 2}", hasFlag(controllerPod, "--upstream-pullers=2")},
		{"distribution: {fanout: 8}", hasFlag(controllerPod, "--fanout=8")},
		{"distribution: {maxConcurrentPulls: 50}", hasFlag(controllerPod, "--max-concurrent-pulls=50")},
		{"distribution: {seedTimeout: 30s}", hasFlag(controllerPod, "--seed-timeout=30s")},
		{"distribution: {agentTimeout: 30s}", hasFlag(controllerPod, "--agent-timeout=30s")},
		{"distribution: {followSeed: false}", hasFlag(controllerPod, "--follow-seed=false")},
		{"distribution: {mirrorFallback: Never}", hasFlag(controllerPod, "--mirror-fallback=Never")},
		{"distribution: {nodeLocalRepositories: [docker.io/library/app, a.example.com/**]}",
			hasFlag(controllerPod, "--node-local-repositories=docker.io/library/app,a.example.com/**")},

		{"policies: {}", hasFlag(controllerPod, "--default-policy=Allow")},
		{"policies: {a: {namespaceSelector: {}}}", hasFlag(controllerPod, "--default-policy=Deny")},
		{"{policies: {a: {namespaceSelector: {}}}, defaultPolicy: Allow}", hasFlag(controllerPod, "--default-policy=Allow")},
		{"defaultPolicy: Deny", hasFlag(controllerPod, "--default-policy=Deny")},
		{"policies: {a: {namespaceSelector: {matchLabels: {team: a}}, allowedRepositories: [ghcr.io/org/**]}}", present("PrefetchPolicy", "a")},

		{"controller: {replicas: 3}", func(t *testing.T, m manifest) {
			if n := *as[appsv1.Deployment](t, m, "Deployment", "sluice-controller").Spec.Replicas; n != 3 {
				t.Errorf("%d replicas", n)
			}
		}},
		{"controller: {priorityClassName: ''}", pod(controllerPod, func(p corev1.PodTemplateSpec) bool { return p.Spec.PriorityClassName == "" })},
		{
			values: "controller: {tolerations: [{key: infra, operator: Exists}]}",
			check:  pod(controllerPod, func(p corev1.PodTemplateSpec) bool { return p.Spec.Tolerations[0].Key == "infra" }),
		},
		{
			values: "controller: {tolerations: [{key: infra, operator: Exists}]}",
			check:  pod("Job/sluice-crds", func(p corev1.PodTemplateSpec) bool { return p.Spec.Tolerations[0].Key == "infra" }),
		},
		{
			values: "controller: {nodeSelector: {infra: 'yes'}}",
			check:  pod(controllerPod, func(p corev1.PodTemplateSpec) bool { return p.Spec.NodeSelector["infra"] == "yes" }),
		},
		{
			values: "controller: {affinity: {nodeAffinity: {}}}",
			check:  pod(controllerPod, func(p corev1.PodTemplateSpec) bool { return p.Spec.Affinity.PodAntiAffinity == nil }),
		},
		{
			values: "controller: {affinity: {nodeAffinity: {}}}",
			check:  pod("Job/sluice-uninstall", func(p corev1.PodTemplateSpec) bool { return p.Spec.Affinity != nil }),
		},
		{
			values: "controller: {nodeSelector: {infra: 'yes'}}",
			check:  pod("Job/sluice-startup-check", func(p corev1.PodTemplateSpec) bool { return p.Spec.NodeSelector["infra"] == "yes" }),
		},
		{"controller: {affinity: {}}", pod(controllerPod, func(p corev1.PodTemplateSpec) bool { return p.Spec.Affinity.PodAntiAffinity != nil })},
		{
			values: "controller: {topologySpreadConstraints: [{maxSkew: 2, topologyKey: rack, whenUnsatisfiable: DoNotSchedule}]}",
			check: pod(controllerPod, func(p corev1.PodTemplateSpec) bool {
				return len(p.Spec.TopologySpreadConstraints) == 1 && p.Spec.TopologySpreadConstraints[0].TopologyKey == "rack"
			}),
		},
		{"controller: {podAnnotations: {a: b}, podLabels: {c: d}}", pod(controllerPod, func(p corev1.PodTemplateSpec) bool {
			return p.Annotations["a"] == "b" && p.Labels["c"] == "d" && p.Labels["app.kubernetes.io/component"] == "controller"
		})},
		{"controller: {resources: {limits: {memory: 3Gi}}}", pod(controllerPod, func(p corev1.PodTemplateSpec) bool {
			return p.Spec.Containers[0].Resources.Limits.Memory().String() == "3Gi"
		})},
		{"controller: {extraArgs: [--verbosity=1]}", hasFlag(controllerPod, "--verbosity=1")},

		{"agent: {containerd: {socket: /run/k3s/containerd/containerd.sock}}", hasFlag(agentPod, "--containerd-address=/run/k3s/containerd/containerd.sock")},
		{
			values: "agent: {containerd: {socket: /run/k3s/containerd/containerd.sock}}",
			check:  pod(agentPod, func(p corev1.PodTemplateSpec) bool { return p.Spec.Volumes[0].HostPath.Path == "/run/k3s/containerd" }),
		},
		{"agent: {containerd: {certsDir: /etc/certs.d}}", hasFlag(agentPod, "--registry-config-path=/etc/certs.d")},
		{"agent: {containerd: {certsDir: '/etc/containerd/certs.d:/etc/docker/certs.d'}}", pod(agentPod, func(p corev1.PodTemplateSpec) bool {
			return slices.ContainsFunc(p.Spec.Containers[0].VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == "/etc/docker/certs.d" })
		})},
		{"agent: {containerd: {upstreamHosts: [a, 'b:5000']}}", hasFlag(agentPod, "--upstream-hosts=a,b:5000")},
		{"agent: {containerd: {mirrorRedirectHosts: [a, 'b:9000']}}", hasFlag(agentPod, "--mirror-redirect-hosts=a,b:9000")},
		{"agent: {containerd: {root: /data}}", pod(agentPod, func(p corev1.PodTemplateSpec) bool { return mounts(p, "/data") })},
		{"agent: {containerd: {snapshots: /snapshots}}", pod(agentPod, func(p corev1.PodTemplateSpec) bool { return mounts(p, "/snapshots") })},
		{"agent: {trustDirs: [/etc/pki, /opt/ca]}", pod(agentPod, func(p corev1.PodTemplateSpec) bool {
			return slices.ContainsFunc(p.Spec.Volumes, func(v corev1.Volume) bool { return v.HostPath != nil && v.HostPath.Path == "/opt/ca" })
		})},
		{"agent: {extraEnv: [{name: HTTPS_PROXY, value: 'http://proxy:3128'}]}", pod(agentPod, func(p corev1.PodTemplateSpec) bool {
			return slices.Contains(p.Spec.Containers[0].Env, corev1.EnvVar{Name: "HTTPS_PROXY", Value: "http://proxy:3128"})
		})},
		{"agent: {maxParallelPulls: 5}", hasFlag(agentPod, "--max-parallel-pulls=5")},
		{"agent: {noProgressTimeout: 2m}", hasFlag(agentPod, "--no-progress-timeout=2m")},
		{"agent: {minFreeDisk: 5%}", hasFlag(agentPod, "--min-free-disk=5%")},
		{"agent: {kubeletConfig: /var/lib/kubelet/config.yaml}", hasFlag(agentPod, "--kubelet-config=/var/lib/kubelet/config.yaml")},
		{"agent: {kubeletConfig: /var/lib/kubelet/config.yaml}", pod(agentPod, func(p corev1.PodTemplateSpec) bool {
			return mounts(p, "/var/lib/kubelet/config.yaml")
		})},
		{"agent: {ports: {metrics: 19080, probes: 19081}}", func(t *testing.T, m manifest) {
			hasFlag(agentPod, "--metrics-bind-address=:19080")(t, m)
			hasFlag(agentPod, "--health-probe-bind-address=:19081")(t, m)
			ports := m.pods(t)[agentPod].Spec.Containers[0].Ports
			if ports[0].ContainerPort != 19080 || ports[1].ContainerPort != 19081 {
				t.Errorf("%v", ports)
			}
		}},
		{"agent: {hostNetwork: true}", pod(agentPod, func(p corev1.PodTemplateSpec) bool {
			return p.Spec.HostNetwork && p.Spec.DNSPolicy == corev1.DNSClusterFirstWithHostNet
		})},
		{"agent: {seLinuxOptions: {type: spc_t}}", pod(agentPod, func(p corev1.PodTemplateSpec) bool {
			return p.Spec.Containers[0].SecurityContext.SELinuxOptions.Type == "spc_t"
		})},
		{
			values: "agent: {priorityClassName: p, nodeSelector: {a: b}, tolerations: [{key: only}], affinity: {nodeAffinity: {}}}",
			check: pod(agentPod, func(p corev1.PodTemplateSpec) bool {
				return p.Spec.PriorityClassName == "p" && p.Spec.NodeSelector["a"] == "b" && p.Spec.Tolerations[0].Key == "only" && p.Spec.Affinity != nil
			}),
		},
		{"agent: {maxUnavailable: 3}", func(t *testing.T, m manifest) {
			if n := as[appsv1.DaemonSet](t, m, "DaemonSet", "sluice-agent").Spec.UpdateStrategy.RollingUpdate.MaxUnavailable; n.IntValue() != 3 {
				t.Errorf("maxUnavailable %v", n)
			}
		}},
		{"agent: {podAnnotations: {a: b}, podLabels: {c: d}, resources: {limits: {memory: 2Gi}}}", pod(agentPod, func(p corev1.PodTemplateSpec) bool {
			return p.Annotations["a"] == "b" && p.Labels["c"] == "d" && p.Spec.Containers[0].Resources.Limits.Memory().String() == "2Gi"
		})},
		{"agent: {extraArgs: [--verbosity=1]}", hasFlag(agentPod, "--verbosity=1")},

		{"certificate: {source: SelfManaged}", absent("Certificate", "sluice-controller-tls")},
		{"certificate: {source: SelfManaged}", absent("Issuer", "sluice-ca")},
		{"certificate: {source: SelfManaged}", hasFlag(controllerPod, "--self-managed-certificate=true")},
		{"certificate: {source: CertManager}", hasFlag(controllerPod, "--self-managed-certificate=false")},
		{"certificate: {source: SelfManaged}", present("Role", "sluice-controller-certificate")},
		{"certificate: {source: CertManager}", absent("Role", "sluice-controller-certificate")},
		{"certificate: {issuerRef: {name: ours, kind: ClusterIssuer}}", absent("Issuer", "sluice-ca")},
		{"certificate: {issuerRef: {name: ours, kind: ClusterIssuer}, duration: 24h, renewBefore: 8h}", func(t *testing.T, m manifest) {
			spec := m.find("Certificate", "sluice-controller-tls").Object["spec"].(map[string]any)
			want := map[string]any{"name": "ours", "kind": "ClusterIssuer", "group": "cert-manager.io"}
			if !equality.Semantic.DeepEqual(spec["issuerRef"], want) || spec["duration"] != "24h" || spec["renewBefore"] != "8h" {
				t.Errorf("%v", spec)
			}
		}},

		{"rbac: {aggregate: true}", func(t *testing.T, m manifest) {
			if as[rbacv1.ClusterRole](t, m, "ClusterRole", "sluice-edit").Labels["rbac.authorization.k8s.io/aggregate-to-edit"] != "true" {
				t.Error("edit does not include sluice-edit")
			}
			if as[rbacv1.ClusterRole](t, m, "ClusterRole", "sluice-edit").Labels["rbac.authorization.k8s.io/aggregate-to-view"] != "" {
				t.Error("view includes sluice-edit")
			}
		}},
		{"rbac: {aggregate: false}", func(t *testing.T, m manifest) {
			if as[rbacv1.ClusterRole](t, m, "ClusterRole", "sluice-edit").Labels["rbac.authorization.k8s.io/aggregate-to-edit"] != "" {
				t.Error("edit includes sluice-edit")
			}
		}},
		{"crds: {upgrade: false}", absent("Job", "sluice-crds")},
		{"crds: {upgrade: true}", func(t *testing.T, m manifest) {
			rule := as[rbacv1.ClusterRole](t, m, "ClusterRole", "sluice-crds").Rules[0]
			if !slices.Equal(rule.ResourceNames, []string{"imageprefetches.sluice.dev", "nodeimagesets.sluice.dev", "prefetchpolicies.sluice.dev"}) {
				t.Errorf("the hook may change %v", rule.ResourceNames)
			}
		}},
		{"startupCheck: {enabled: false}", absent("Job", "sluice-startup-check")},
		{"startupCheck: {enabled: true}", hasFlag("Job/sluice-startup-check", "--namespace=$(POD_NAMESPACE)")},
		{"uninstall: {release: false}", absent("Job", "sluice-uninstall")},
		{"uninstall: {release: true}", hasFlag("Job/sluice-uninstall", "--namespace=$(POD_NAMESPACE)")},

		{"metrics: {podMonitor: {enabled: false}}", absent("PodMonitor", "sluice-agent")},
		{"metrics: {podMonitor: {enabled: true, interval: 10s, labels: {release: prometheus}}}", func(t *testing.T, m manifest) {
			for _, name := range []string{"sluice-agent", "sluice-controller"} {
				monitor := m.find("PodMonitor", name)
				endpoint := monitor.Object["spec"].(map[string]any)["podMetricsEndpoints"].([]any)[0].(map[string]any)
				if monitor.GetLabels()["release"] != "prometheus" || endpoint["interval"] != "10s" {
					t.Errorf("%v", monitor.Object)
				}
			}
		}},
		{"metrics: {prometheusRule: {enabled: true, labels: {release: prometheus}}}", func(t *testing.T, m manifest) {
			if m.find("PrometheusRule", "sluice").GetLabels()["release"] != "prometheus" {
				t.Error("the label is missing")
			}
		}},
		{"metrics: {dashboard: {enabled: true}}", func(t *testing.T, m manifest) {
			dashboard := as[corev1.ConfigMap](t, m, "ConfigMap", "sluice-dashboard")
			if !json.Valid([]byte(dashboard.Data["sluice.json"])) || dashboard.Labels["grafana_dashboard"] != "1" {
				t.Errorf("%v", dashboard)
			}
		}},
		{"networkPolicy: {enabled: false}", absent("NetworkPolicy", "sluice-agent")},
	} {
		t.Run(tt.values, func(t *testing.T) {
			t.Parallel()
			tt.check(t, render(t, tt.values))
		})
	}
}

func TestSchemaRejects(t *testing.T) {
	for _, values := range []string{
		"replica: 3",
		"image: {repository: x}",
		"image: {pullPolicy: Sometimes}",
		"distribution: {upstreamPullers: 0}",
		"distribution: {seedTimeout: 2}",
		"distribution: {mirrorFallback: Always}",
		"defaultPolicy: allow",
		"policies: {a: {allowedRepositories: [x]}}",
		"policies: {a: {namespaceSelector: {}, allowedRepos: [x]}}",
		"policies: {A_b: {namespaceSelector: {}}}",
		"controller: {imageDigest: v1}",
		"controller: {extraArgs: --v=1}",
		"agent: {containerd: {socket: run/containerd.sock}}",
		"agent: {minFreeDisk: 15}",
		"agent: {kubeletConfig: config.yaml}",
		"agent: {containerd: {snapshots: snapshots}}",
		"agent: {credentialProvider: {config: /etc/providers.yaml}}",
		"agent: {credentialProvider: {binDir: /opt/providers}}",
		"agent: {credentialProvider: {config: providers.yaml, binDir: /opt/providers}}",
		"agent: {credentialProvider: {files: [/etc/kubernetes/azure.json]}}",
		"agent: {resources: {limit: {}}}",
		"certificate: {source: None}",
		"certificate: {issuerRef: {nam: x}}",
		"certificate: {issuerRef: {kind: ClusterIssuer}}",
		"controller: {replicas: 0}",
		"metrics: {serviceMonitor: {}}",
		"networkPolicy: {enabled: 'yes'}",
	} {
		t.Run(values, func(t *testing.T) {
			t.Parallel()
			if out, err := template(t, values); err == nil {
				t.Error("taken")
			} else if !strings.Contains(out, "values don't meet the specifications of the schema") {
				t.Errorf("rejected by something else than the schema: %s", out)
			}
		})
	}
}

// The API server finds the controllers, and trusts them.

// mounts reports whether a Pod shows a folder or file of its node under the same path, read-only.
func mounts(p corev1.PodTemplateSpec, path string) bool {
	return slices.ContainsFunc(p.Spec.Volumes, func(v corev1.Volume) bool {
		return v.HostPath != nil && v.HostPath.Path == path &&
			slices.ContainsFunc(p.Spec.Containers[0].VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == v.Name && m.MountPath == path && m.ReadOnly })
	})
}
