// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package chart_test

import (
	"cmp"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/go-logr/logr"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

const (
	controllerPod = "Deployment/sluice-controller"
	agentPod      = "DaemonSet/sluice-agent"
)

func TestLint(t *testing.T) {
	if out, err := helm(t, "lint", "--strict", chartDir); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// Every Pod runs with as few rights as it can.
func TestPodsAreConfined(t *testing.T) {
	for name, pod := range render(t, "").pods(t) {
		t.Run(name, func(t *testing.T) {
			spec := pod.Spec
			if spec.HostNetwork || spec.HostPID || spec.HostIPC {
				t.Error("shares a namespace of the node")
			}
			if spec.SecurityContext.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
				t.Error("has no seccomp profile")
			}
			root := name == agentPod // containerd's socket is root's
			if nonRoot := spec.SecurityContext.RunAsNonRoot; !root && (nonRoot == nil || !*nonRoot) {
				t.Error("may run as root")
			}
			for _, container := range slices.Concat(spec.InitContainers, spec.Containers) {
				security := container.SecurityContext
				if security.Privileged != nil && *security.Privileged {
					t.Error("is privileged")
				}
				if security.AllowPrivilegeEscalation == nil || *security.AllowPrivilegeEscalation {
					t.Error("may gain privileges")
				}
				if security.ReadOnlyRootFilesystem == nil || !*security.ReadOnlyRootFilesystem {
					t.Error("may write to its image")
				}
				if !slices.Equal(security.Capabilities.Drop, []corev1.Capability{"ALL"}) || len(security.Capabilities.Add) > 0 {
					t.Errorf("has capabilities: %v", security.Capabilities)
				}
				if container.Resources.Requests.Cpu().IsZero() || container.Resources.Limits.Memory().IsZero() {
					t.Error("requests no CPU, or has no limit of memory")
				}
			}
		})
	}
}

func TestOnlyTheAgentSeesTheNode(t *testing.T) {
	pods := render(t, "").pods(t)
	paths := map[string]string{}
	for name, pod := range pods {
		for _, volume := range pod.Spec.Volumes {
			if volume.HostPath == nil {
				continue
			}
			if name != agentPod {
				t.Errorf("%s mounts %s", name, volume.HostPath.Path)
			}
			paths[volume.Name] = volume.HostPath.Path
		}
	}
	want := map[string]string{
		"containerd": "/run/containerd",
		"certs-d-0":  "/etc/containerd/certs.d",
		"scratch":    "/run/sluice",
		"data":       "/var/lib/containerd",
		"trust-0":    "/etc/ssl/certs",
	}
	if !equality.Semantic.DeepEqual(paths, want) {
		t.Errorf("the agent mounts %v, want %v", paths, want)
	}
	for _, mount := range pods[agentPod].Spec.Containers[0].VolumeMounts {
		if !mount.ReadOnly && mount.Name != "scratch" {
			t.Errorf("the agent may write to %s", mount.MountPath)
		}
		if path, ok := want[mount.Name]; ok && mount.MountPath != path {
			t.Errorf("%s is at %s in the Pod, but the agent and containerd speak of it by one path", path, mount.MountPath)
		}
	}
}

func TestTheCredentialProvidersOfTheNodeAreMountedWhenAskedFor(t *testing.T) {
	const bin, file, folder = "/opt/providers", string(corev1.HostPathFile), string(corev1.HostPathDirectory)
	for _, tt := range []struct {
		reason, values, config string
		want                   map[string]string // the types of the paths
	}{
		{"by default not", "", "", map[string]string{}},
		{
			"a file, and what the plugins read",
			"{config: /etc/kubernetes/providers.yaml, binDir: /opt/providers, files: [/etc/kubernetes/azure.json]}", "/etc/kubernetes/providers.yaml",
			map[string]string{bin: folder, "/etc/kubernetes/providers.yaml": file, "/etc/kubernetes/azure.json": file},
		},
		{
			"a folder", "{config: /etc/providers.d, binDir: /opt/providers}", "/etc/providers.d",
			map[string]string{bin: folder, "/etc/providers.d": folder},
		},
		{
			"a file that begins like the plugins' folder", "{config: /opt/providers.yml, binDir: /opt/providers}", "/opt/providers.yml",
			map[string]string{bin: folder, "/opt/providers.yml": file},
		},
		{"a file among the plugins", "{config: /opt/providers/config.json, binDir: /opt/providers}", "/opt/providers/config.json", map[string]string{bin: folder}},
		{"the folder of the plugins itself", "{config: /opt/providers, binDir: /opt/providers}", bin, map[string]string{bin: folder}},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			rendered := render(t, "agent: {credentialProvider: "+cmp.Or(tt.values, "{}")+"}")
			pod := rendered.pods(t)[agentPod]
			mounted := map[string]string{}
			for _, mount := range pod.Spec.Containers[0].VolumeMounts {
				if strings.HasPrefix(mount.Name, "credential-provider-") {
					mounted[mount.Name] = mount.MountPath
					if !mount.ReadOnly {
						t.Errorf("the agent may write to %s", mount.MountPath)
					}
				}
			}
			types := map[string]string{}
			for _, volume := range pod.Spec.Volumes {
				if path, ok := mounted[volume.Name]; ok && volume.HostPath.Path == path {
					types[path] = string(*volume.HostPath.Type)
				}
			}
			if len(types) != len(mounted) || !equality.Semantic.DeepEqual(types, tt.want) {
				t.Errorf("mounts %v of types %v, want %v", mounted, types, tt.want)
			}
			flags := rendered.flags(t, agentPod)
			for flag, value := range map[string]string{"config": tt.config, "bin-dir": bin} {
				given := slices.Contains(flags, "--image-credential-provider-"+flag+"="+value)
				if set := strings.Contains(strings.Join(flags, " "), "--image-credential-provider-"+flag); given != (tt.config != "") || set != given {
					t.Errorf("flags %v", flags)
				}
			}
		})
	}
}

// A kubelet may read each Secret that a Pod of its node names, whichever keys of it the Pod mounts.
func TestNoPodNamesASecret(t *testing.T) {
	for _, values := range []string{"", "certificate: {source: SelfManaged}", "certificate: {issuerRef: {name: ours}}", everything} {
		for name, pod := range render(t, values).pods(t) {
			for _, reference := range secretsIn(pod) {
				t.Errorf("%s names a Secret with %q: %s", name, values, reference)
			}
		}
	}
}

// secretsIn are the places where a Pod names a Secret, but for its imagePullSecrets.
func secretsIn(pod corev1.PodTemplateSpec) (found []string) {
	for _, volume := range pod.Spec.Volumes {
		if volume.Secret != nil {
			found = append(found, "volume "+volume.Name)
		}
		if volume.Projected == nil {
			continue
		}
		for _, source := range volume.Projected.Sources {
			if source.Secret != nil {
				found = append(found, "volume "+volume.Name)
			}
		}
	}
	for _, container := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		for _, source := range container.EnvFrom {
			if source.SecretRef != nil {
				found = append(found, "environment of "+container.Name)
			}
		}
		for _, variable := range container.Env {
			if variable.ValueFrom != nil && variable.ValueFrom.SecretKeyRef != nil {
				found = append(found, "variable "+variable.Name)
			}
		}
	}
	return found
}

// What docs/install.md says about nodes for the controllers does what it says.
func TestControllersArePlacedAsTheGuideSays(t *testing.T) {
	guide, err := os.ReadFile("../../docs/install.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(guide), "\n### Where the controllers run\n")
	_, section, _ = strings.Cut(section, "\n```yaml\n")
	values, _, _ := strings.Cut(section, "```")
	const label = "node-restriction.kubernetes.io/dedicated"
	taint := corev1.Taint{Key: "dedicated", Value: "sluice", Effect: corev1.TaintEffectNoSchedule}
	for name, pod := range render(t, values).pods(t) {
		there := pod.Spec.NodeSelector[label] == "sluice"
		if want := name != agentPod; there != want {
			t.Errorf("%s has the node selector: %t, want %t", name, there, want)
		}
		if pod.Spec.NodeSelector[corev1.LabelOSStable] != "linux" {
			t.Errorf("%s lost the default: %v", name, pod.Spec.NodeSelector)
		}
		if !slices.ContainsFunc(pod.Spec.Tolerations, func(toleration corev1.Toleration) bool {
			return toleration.ToleratesTaint(logr.Discard(), &taint, false)
		}) {
			t.Errorf("%s does not tolerate the taint", name)
		}
	}
}

// The sources and what the chart makes of them say the same.
func TestRulesAreThoseOfConfig(t *testing.T) {
	rendered := render(t, "")
	files, err := filepath.Glob("../../config/[rw]*/*.yaml") // rbac and webhook
	if err != nil || len(files) < 5 {
		t.Fatalf("found %q, %v", files, err)
	}
	for _, file := range files {
		for _, want := range readAll(t, file) {
			if want.GetKind() == "Namespace" {
				continue
			}
			got := rendered.find(want.GetKind(), want.GetName())
			if got == nil {
				t.Errorf("%s %s is not in the chart", want.GetKind(), want.GetName())
				continue
			}
			for _, key := range []string{"rules", "roleRef", "subjects", "webhooks", "spec"} {
				if !equality.Semantic.DeepEqual(got.Object[key], want.Object[key]) {
					t.Errorf("%s of %s %s differ: %v, want %v", key, want.GetKind(), want.GetName(), got.Object[key], want.Object[key])
				}
			}
		}
	}
}

func TestNothingOfAnotherNamespace(t *testing.T) {
	out, err := helm(t, "template", "other", chartDir, "--namespace", "elsewhere", "--kube-version", "1.36.0")
	if err != nil {
		t.Fatal(out)
	}
	if strings.Contains(out, "sluice-system") {
		t.Error("installed elsewhere, the chart still speaks of sluice-system")
	}
}

func TestNobodyMayReadSecretsButByName(t *testing.T) {
	for _, object := range render(t, "certificate: {source: SelfManaged}") {
		if object.GetKind() != "ClusterRole" && object.GetKind() != "Role" {
			continue
		}
		var role rbacv1.ClusterRole
		text, err := json.Marshal(object.Object)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, &role); err != nil {
			t.Fatal(err)
		}
		for _, rule := range role.Rules {
			if slices.Contains(rule.Verbs, "*") || slices.Contains(rule.Resources, "*") || slices.Contains(rule.APIGroups, "*") {
				t.Errorf("%s %s has a wildcard: %v", object.GetKind(), role.Name, rule)
			}
			if slices.Contains(rule.Resources, "secrets") && (slices.Contains(rule.Verbs, "list") || slices.Contains(rule.Verbs, "watch")) {
				t.Errorf("%s %s may list secrets", object.GetKind(), role.Name)
			}
		}
	}
}

func TestWebhooksReachTheService(t *testing.T) {
	rendered := render(t, "webhook: {timeoutSeconds: 7}")
	mutating := as[admissionregistrationv1.MutatingWebhookConfiguration](t, rendered, "MutatingWebhookConfiguration", "sluice")
	validating := as[admissionregistrationv1.ValidatingWebhookConfiguration](t, rendered, "ValidatingWebhookConfiguration", "sluice")
	service := as[corev1.Service](t, rendered, "Service", "sluice-controller")
	check := func(name string, config admissionregistrationv1.WebhookClientConfig, seconds int32) {
		asked := config.Service
		if asked.Name != service.Name || asked.Namespace != service.Namespace || asked.Path == nil {
			t.Errorf("%s asks %+v", name, asked)
		}
		if asked.Port != nil || service.Spec.Ports[0].Port != 443 { // what no port means
			t.Errorf("%s asks port %v", name, asked.Port)
		}
		if seconds != 7 {
			t.Errorf("%s waits %d s", name, seconds)
		}
	}
	for _, w := range mutating.Webhooks {
		check(w.Name, w.ClientConfig, *w.TimeoutSeconds)
	}
	for _, w := range validating.Webhooks {
		check(w.Name, w.ClientConfig, *w.TimeoutSeconds)
	}
	for _, configuration := range []metav1.ObjectMeta{mutating.ObjectMeta, validating.ObjectMeta} {
		if from := configuration.Annotations["cert-manager.io/inject-ca-from"]; from != "sluice-system/sluice-controller-tls" {
			t.Errorf("the CA comes from %q", from)
		}
	}
	for _, object := range render(t, "certificate: {source: SelfManaged}") {
		if object.GetAnnotations()["cert-manager.io/inject-ca-from"] != "" {
			t.Errorf("%s asks cert-manager for a CA that it does not have", object.GetKind())
		}
	}
}

// A program that knows its limit collects garbage before it is ended.
func TestProgramsKnowTheirMemoryLimit(t *testing.T) {
	limit := corev1.EnvVar{Name: "GOMEMLIMIT", ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "limits.memory"}}}
	pods := render(t, "").pods(t)
	for _, name := range []string{agentPod, controllerPod} {
		env := pods[name].Spec.Containers[0].Env
		if !slices.ContainsFunc(env, func(v corev1.EnvVar) bool { return equality.Semantic.DeepEqual(v, limit) }) {
			t.Errorf("%s does not know its limit: %v", name, env)
		}
	}
}

// Every reason of a status or an event is explained on a page.
func TestEveryReasonIsExplained(t *testing.T) {
	guide, err := os.ReadFile("../../docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, dir := range []string{"../../api/v1alpha1", "../../internal/hold"} {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, match := range regexp.MustCompile(`Reason\w+ += "(\w+)"`).FindAllStringSubmatch(string(text), -1) {
				found++
				if !strings.Contains(string(guide), "`"+match[1]+"`") {
					t.Errorf("docs/troubleshooting.md does not explain %s", match[1])
				}
			}
		}
	}
	if found < 20 {
		t.Errorf("found %d reasons only", found)
	}
}

// Programs that know no hooks apply all objects, in the order in which they are printed. The hook of
// an uninstallation must then see, from its first moment, that it is none.
func TestUninstallRefusesWhereHooksAreObjects(t *testing.T) {
	const values = "{certificate: {source: SelfManaged}}"
	dir := t.TempDir()
	chart, err := filepath.Abs(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir, "kustomization.yaml", `
namePrefix: our-
helmGlobals: {chartHome: `+filepath.Dir(chart)+`}
helmCharts:
- {name: sluice, releaseName: sluice, namespace: `+namespace+`, valuesInline: `+values+`}
`)
	path, err := buildHelm()
	if err != nil {
		t.Fatal(err)
	}
	for by, objects := range map[string]manifest{
		"helm template": render(t, values),
		"kustomize": kustomize(t, dir, "--enable-helm", "--helm-command="+path, "--helm-kube-version=1.36.0",
			"--load-restrictor=LoadRestrictionsNone"),
	} {
		at := slices.IndexFunc(objects, func(o *unstructured.Unstructured) bool {
			return o.GetKind() == "ConfigMap" && strings.HasSuffix(o.GetName(), "sluice-not-a-hook")
		})
		job := slices.IndexFunc(objects, func(o *unstructured.Unstructured) bool {
			return o.GetKind() == "Job" && strings.HasSuffix(o.GetName(), "sluice-uninstall")
		})
		if at < 0 || job < at {
			t.Fatalf("%s prints the ConfigMap at %d and the Job at %d", by, at, job)
		}
		// Of these Helm runs none when it installs, upgrades, tests or uninstalls.
		if hook := objects[at].GetAnnotations()["helm.sh/hook"]; hook != "pre-rollback" {
			t.Errorf("%s: the ConfigMap is a hook of %s", by, hook)
		}
		pod := objects.pods(t)["Job/"+objects[job].GetName()].Spec
		reason, _ := strings.CutPrefix(pod.Containers[0].Args[len(pod.Containers[0].Args)-1], "--refusal-file=")
		mount, source := pod.Containers[0].VolumeMounts[0], pod.Volumes[0].ConfigMap
		if mount.Name != pod.Volumes[0].Name || source.Name != objects[at].GetName() || source.Optional == nil || !*source.Optional {
			t.Errorf("%s: the Job mounts %+v from %+v, and the ConfigMap is %s", by, mount, source, objects[at].GetName())
		}
		if text, _, _ := unstructured.NestedString(objects[at].Object, "data", filepath.Base(reason)); filepath.Dir(reason) != mount.MountPath || text == "" {
			t.Errorf("%s: the Job reads %s in %s, where there is %q", by, reason, mount.MountPath, text)
		}
	}
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
